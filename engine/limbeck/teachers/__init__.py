"""The built-in teachers, and what every teacher shares: checks of requests, batches, seeded draws."""

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck.teachers.config import TransformersConfig


def _transformers(config: TransformersConfig) -> Teacher:
    try:
        from limbeck.teachers.transformers import TransformersTeacher
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("torch", "transformers"):
            problem = Problem(f"the teacher `transformers` needs {error.name}", hint='pip install "limbeck[train]"')
            raise LimbeckError(Reason.EXTRA_MISSING, problems=[problem]) from error
        raise
    return TransformersTeacher(config)


PLUGINS = (
    TeacherPlugin(
        name="transformers",
        config=TransformersConfig,
        factory=_transformers,
        summary="Any Hugging Face causal language model, on this machine.",
    ),
)

__all__ = ["PLUGINS", "TransformersConfig"]
