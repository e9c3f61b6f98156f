"""The teacher `openai`: a model behind any OpenAI-compatible endpoint, asked with text."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import TeacherPlugin, TextTeacher
from limbeck_openai.config import OpenAIConfig


def _openai(config: OpenAIConfig) -> TextTeacher:
    from limbeck_openai.teacher import OpenAITeacher

    return OpenAITeacher(config)


@hookimpl
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """One teacher."""
    yield TeacherPlugin(
        name="openai",
        config=OpenAIConfig,
        factory=_openai,
        summary="A model behind an OpenAI-compatible endpoint: text, cached, within a budget.",
    )
