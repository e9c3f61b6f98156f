"""The teacher `echo`: deterministic, without torch."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck_echo.config import EchoConfig


def _echo(config: EchoConfig) -> Teacher:
    from limbeck_echo.teacher import EchoTeacher

    return EchoTeacher(config)


@hookimpl
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """One teacher."""
    yield TeacherPlugin(
        name="echo",
        config=EchoConfig,
        factory=_echo,
        summary="A deterministic teacher without torch, for tests: it repeats words of the prompt.",
    )
