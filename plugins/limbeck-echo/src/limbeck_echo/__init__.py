"""The teachers `echo` and `echo-text`: deterministic, without torch."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import Teacher, TeacherPlugin, TextTeacher
from limbeck_echo.config import EchoConfig, EchoTextConfig


def _echo(config: EchoConfig) -> Teacher:
    from limbeck_echo.teacher import EchoTeacher

    return EchoTeacher(config)


def _echo_text(config: EchoTextConfig) -> TextTeacher:
    from limbeck_echo.text import EchoTextTeacher

    return EchoTextTeacher(config)


@hookimpl
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """One teacher on token ids, one that is asked with text."""
    yield TeacherPlugin(
        name="echo",
        config=EchoConfig,
        factory=_echo,
        summary="A deterministic teacher without torch, for tests: it repeats words of the prompt.",
    )
    yield TeacherPlugin(
        name="echo-text",
        config=EchoTextConfig,
        factory=_echo_text,
        summary="A deterministic teacher that is asked with text, for tests: it answers with words of the prompt.",
    )
