"""Texts on their way to a client: without the paths of this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from limbeck.errors import Problem

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

MOST_CHARACTERS = 100_000  # of one text of an event: gRPC takes 4 MiB a message
_PATH = re.compile(r"(?:(?<![\w./])|(?<=://))~?/(?:[^\s/'\",;:]+/)+(?=[^\s/'\",;:]|)")
_RECIPES = re.compile(r"(?<![\w./-])\.run-\w+\.yaml\b")
RECIPE = "recipe"  # what a client calls the recipe of a run


def without_paths(text: str) -> str:
    """A text that clients see: of each path only its last name is left."""
    return _PATH.sub("…/", text)


class Public:
    """What clients see of texts and of files' names: relative to the workspace, and no path elsewhere on this machine.

    `roots`: the names of the workspace, which may be a link; none where there is none.
    """

    def __init__(self, *roots: str) -> None:
        self._roots = sorted(set(roots))
        names = "|".join(map(re.escape, self._roots)) or "(?!)"
        self._named = re.compile(rf"(?<![\w/])(?:{names})(/+|(?![\w.-]))")

    def __call__(self, text: str) -> str:
        """A text: a run's recipe is `recipe`."""
        text = self._named.sub(lambda found: "" if found[1] else ".", text)
        return without_paths(_RECIPES.sub(RECIPE, text))

    def file(self, file: str) -> str:
        """A file's name: of one that lies elsewhere the last part is left."""
        path = PurePath(file)
        root = next((root for root in self._roots if path.is_relative_to(root)), None)
        if root is not None:
            path = path.relative_to(root)
        if _RECIPES.fullmatch(str(path)):
            return RECIPE
        is_elsewhere = path.is_absolute() or ".." in path.parts or str(path).startswith(("~", "…"))
        return f"…/{path.name}" if is_elsewhere else path.as_posix()

    def problem(self, problem: Problem) -> Problem:
        """A problem: all that it says."""
        return replace(
            problem,
            message=self(problem.message),
            file=problem.file and self.file(problem.file),
            field=problem.field and self(problem.field),
            hint=problem.hint and self(problem.hint),
        )


def make_public(event: Event, public: Public) -> None:
    """Say by `public` what an event says in words, cut where it is so long that a message would have no room for it.

    What a model or a row says, in a sample, stays as it is.
    """

    def told(text: str) -> str:
        return public(_cut(text))

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
            problem.file = problem.file and public.file(_cut(problem.file))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
