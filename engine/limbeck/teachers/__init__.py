"""The built-in teachers, and what every teacher shares: checks of requests, batches, seeded draws."""

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck.teachers.config import LimbeckConfig, TransformersConfig


def _transformers(config: TransformersConfig) -> Teacher:
    try:
        from limbeck.teachers.transformers import TransformersTeacher
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("torch", "transformers"):
            problem = Problem(f"the teacher `transformers` needs {error.name}", hint='pip install "limbeck[train]"')
            raise LimbeckError(Reason.EXTRA_MISSING, problems=[problem]) from error
        raise
    return TransformersTeacher(config)


def _limbeck(config: LimbeckConfig) -> Teacher:
    from limbeck.teachers.remote import LimbeckTeacher

    return LimbeckTeacher(config)


PLUGINS = (
    TeacherPlugin(
        name="transformers",
        config=TransformersConfig,
        factory=_transformers,
        summary="Any Hugging Face causal language model, on this machine.",
    ),
    TeacherPlugin(
        name="limbeck",
        config=LimbeckConfig,
        factory=_limbeck,
        summary="A teacher of another Limbeck server (`limbeck serve`).",
    ),
)

__all__ = ["PLUGINS", "LimbeckConfig", "TransformersConfig"]
