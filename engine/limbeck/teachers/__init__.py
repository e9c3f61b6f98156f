"""The built-in teachers, and what every teacher shares: checks of requests, batches, seeded draws."""

from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck.teachers.config import TransformersConfig


def _transformers(config: TransformersConfig) -> Teacher:
    from limbeck.teachers.transformers import TransformersTeacher

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
