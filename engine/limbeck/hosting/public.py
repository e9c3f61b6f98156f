"""Texts on their way to a client: without the paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

MOST_CHARACTERS = 100_000  # of one text of an event: gRPC takes 4 MiB a message
_PATH = re.compile(r"(?:(?<![\w./])|(?<=://))~?/(?:[^\s/'\",;:]+/)+(?=[^\s/'\",;:]|)")


def without_paths(text: str) -> str:
    """A text that clients see: of each path only its last name is left."""
    return _PATH.sub("…/", text)


def public_file(file: str, public: Callable[[str], str]) -> str:
    """A file's name that clients see: as `public` tells it, of one that lies elsewhere the last name is left."""
    told = public(file)
    return f"…/{PurePath(file).name}" if told.startswith(("/", "~", "…")) else told


def make_public(event: Event, public: Callable[[str], str]) -> None:
    """Say by `public` what an event says in words, cut where it is so long that a message would have no room for it.

    What a model or a row says, in a sample, stays as it is.
    """

    def told(text: str) -> str:
        return public(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…")

    kind = event.WhichOneof("kind")
    if kind in ("warning", "log", "run_failed"):
        said = getattr(event, kind)
        said.message = told(said.message)
    elif kind == "rewound":
        event.rewound.rejected[:] = map(told, event.rewound.rejected)
    elif kind == "state_changed" and event.state_changed.HasField("error"):
        error = event.state_changed.error
        error.message = told(error.message)
        for problem in error.problems:
            problem.message, problem.field, problem.hint = map(told, (problem.message, problem.field, problem.hint))
            problem.file = public_file(problem.file, told)
