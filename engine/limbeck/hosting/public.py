"""Texts on their way to a client: without the paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

_PATH = re.compile(r"(?:(?<![\w./])|(?<=file://))~?/(?:[^\s/'\",;:]+/)+(?=[^\s/'\",;:]|)")


def without_paths(text: str) -> str:
    """A text that clients see: of each path only its last name is left."""
    return _PATH.sub("…/", text)


def make_public(event: Event, public: Callable[[str], str]) -> None:
    """Say by `public` what an event says in words. What a model or a row says, in a sample, stays as it is."""
    kind = event.WhichOneof("kind")
    if kind in ("warning", "log", "run_failed"):
        said = getattr(event, kind)
        said.message = public(said.message)
    elif kind == "rewound":
        event.rewound.rejected[:] = map(public, event.rewound.rejected)
    elif kind == "state_changed" and event.state_changed.HasField("error"):
        error = event.state_changed.error
        error.message = public(error.message)
        for problem in error.problems:
            problem.message, problem.field = public(problem.message), public(problem.field)
            problem.hint = public(problem.hint)
