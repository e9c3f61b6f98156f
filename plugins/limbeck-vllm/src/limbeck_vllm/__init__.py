"""vLLM as a teacher: `vllm` runs an engine of its own, `vllm-server` asks one that runs elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import TeacherPlugin


@hookimpl
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """Both teachers."""
    from limbeck_vllm.engine import PLUGINS as here
    from limbeck_vllm.server import PLUGINS as elsewhere

    return (*here, *elsewhere)
