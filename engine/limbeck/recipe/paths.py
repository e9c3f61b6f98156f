"""Paths of a recipe: relative ones are relative to the folder that the recipe really lies in (links are followed)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from limbeck.errors import Problem
from limbeck.recipe.document import Document, Path_, field_text

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class PathUse:
    """A path that the recipe names: as written, and what it means here."""

    written: str
    resolved: Path
    field: str
    line: int | None
    column: int | None

    @property
    def fault(self) -> str | None:
        """What keeps it from being read; None where there is a file or a folder."""
        if self.resolved.is_dir() or (self.resolved.is_file() and not self.written.endswith("/")):
            return None
        if self.resolved.exists():  # a pipe, say, which a reader would wait for
            return "not a folder" if self.resolved.is_file() else "neither a file nor a folder"
        return "a link that leads nowhere" if self.resolved.is_symlink() else "not there"


class Guard(Protocol):
    """Says which paths a recipe may name.

    Paths come as they are written, before anything on disk is looked at. For one that it may not name a method raises
    ValueError with what a person reads.
    """

    def path(self, written: str) -> None:
        """One that is read."""

    def made(self, written: str) -> None:
        """One that is made where it is not there."""

    def hub(self, name: str) -> None:
        """A model that is no folder."""

    def problems(self, document: Document, told: Collection[str]) -> list[Problem]:
        """Problems of all that is not marked as a path, and of `output`. `told`: fields that have been looked at."""


class Resolver:
    """Makes the paths of one recipe absolute, and remembers each with its place. `guard`: which ones may be named."""

    def __init__(self, document: Document, guard: Guard | None = None) -> None:
        self.guard = guard
        self._document = document
        self._folder = document.path.parent
        self._at: Path_ = ()
        self._used: set[Path_] = set()
        self.uses: list[PathUse] = []

    def below(self, at: Path_) -> dict[str, Any]:
        """The pydantic context for validating what stands at `at`; see the marks in limbeck.interfaces."""
        self._at = at
        return {"path": self.path, "made": self.made, "model": self.model}

    def path(self, written: str, name: str | None = None) -> str:
        """A path of the local disk, in a field called `name`."""
        if self.guard is not None:
            self.guard.path(written)
        resolved = absolute(self._folder, written)
        self._note(written, resolved, name)
        return str(resolved)

    def made(self, written: str, _: str | None = None) -> str:
        """A path of the local disk that need not be there."""
        if self.guard is not None:
            self.guard.made(written)
        return str(absolute(self._folder, written))

    def model(self, written: str, name: str | None = None) -> str:
        """A folder where one exists or only one can be meant, else a hub id as it is."""
        if self.guard is not None:
            self.guard.path(written)
        resolved = absolute(self._folder, written)
        if _HUB_ID.fullmatch(written) and not resolved.is_dir():
            if self.guard is not None:
                self.guard.hub(written)
            return written
        self._note(written, resolved, name)
        return str(resolved)

    def _note(self, written: str, resolved: Path, name: str | None) -> None:
        places = [
            at for at in self._document.find(self._at, written) if at not in self._used and not self._of_a_plugin(at)
        ]
        places.sort(key=lambda at: name not in at)  # the same text may stand in another field
        at = places[0] if places else self._at
        mark = self._document.values.get(at)
        if any(use.field == field_text(at) and use.resolved == resolved for use in self.uses):
            return  # a union tries the same text in more than one way
        self._used.add(at)
        line, column = (mark.line, mark.column) if mark else (None, None)
        self.uses.append(PathUse(written, resolved, field_text(at), line, column))

    def _of_a_plugin(self, at: Path_) -> bool:
        """Whether a mapping with `plugin:` lies between what is validated and `at`: its paths are noted with it."""
        between = (self._document.at(at[:depth]) for depth in range(len(self._at) + 1, len(at)))
        return any(isinstance(value, dict) and "plugin" in value for value in between)


def absolute(folder: Path, written: str) -> Path:
    """`written` as an absolute path: `~` is the home folder, `..` goes up as the system would; a last link stays."""
    path = folder / Path(written).expanduser()
    if path.name in ("", "..") or written.rstrip("/").endswith("/."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


WHERE = "relative paths are relative to the folder of the recipe"


def missing(file: Path, uses: tuple[PathUse, ...]) -> list[Problem]:
    """One problem for each path that is not there, or can't be read, with the path as written and as resolved."""
    problems = []
    for use in uses:
        if (fault := use.fault) is not None:
            message = f"{use.written!r} is {fault}; it means {use.resolved}"
            problems.append(Problem(message, str(file), use.line, use.column, use.field, WHERE))
    return problems
