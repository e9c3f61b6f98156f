"""The folder of a server's runs: what a recipe from the network may name, and what a client may be told of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason, counted
from limbeck.hosting.borders import Borders
from limbeck.hosting.public import Public
from limbeck.plugins import Registry
from limbeck.recipe import Recipe, read_recipe
from limbeck.recipe.document import Document
from limbeck.recipe.paths import WHERE
from limbeck.runs.folder import IDENTITY

HIDDEN = ".limbeck"  # the server's own folder in the workspace
LENT = "LIMBECK_KEY_"  # variables of the server's environment that recipes may name begin so
MOST_WAITING = 64  # recipes that wait to be read
OUTSIDE = "must lie in the server's workspace, or in a folder that it lets recipes read"


class Workspace:
    """The root of a server's runs, and folders that recipes may read besides. Both may be links."""

    def __init__(self, root: Path, read: Sequence[Path] = ()) -> None:
        self.borders = Borders(root, read)
        self.root = self.borders.root
        self.read = self.borders.read
        self._reader = ThreadPoolExecutor(1, "limbeck-recipe")
        self._waiting = 0
        self.public = Public(os.path.abspath(root), str(self.root))

    def load(self, text: str, registry: Registry, run_id: str | None) -> Recipe:
        """The recipe of a run, as if it lay in the workspace; writes nothing.

        Raises RECIPE_INVALID with every problem, also for inputs that are not there and paths that lead outside. Of
        the latter the text is the same whatever is there, and no path of this machine is told.
        """
        return self._load(text, registry, self.recipe_file(run_id or "new"), inputs=True)

    async def load_aside(self, text: str, registry: Registry, run_id: str | None) -> Recipe:
        """As :meth:`load`, in a thread: one recipe after the other, so that long ones leave the server its other work.

        Raises QUOTA_EXCEEDED too, where many wait.
        """
        if self._waiting >= MOST_WAITING:
            problem = Problem(f"{self._waiting} recipes wait to be read already", hint="try again later")
            raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[problem])
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._reader, self.load, text, registry, run_id)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Read no more recipes in a thread; one that is being read is read to its end."""
        self._reader.shutdown(wait=False)

    def reload(self, file: Path, registry: Registry) -> Recipe:
        """The recipe in `file`, right before it is used: what was inside may lead outside by now.

        Raises as :meth:`load`, but says nothing of inputs that are gone: a run that goes on may need them no more.
        """
        return self._load(file.read_text("utf-8"), registry, file, inputs=False)

    def recipe_file(self, run_id: str) -> Path:
        """Where the recipe of a run lies: in the workspace, so that relative paths mean it."""
        return self.root / f".run-{run_id}.yaml"

    def problem(self, problem: Problem) -> Problem:
        """A problem as clients see it: its file relative to the workspace, or "recipe"."""
        if problem.hint == WHERE:
            problem = replace(problem, hint="relative paths are relative to the server's workspace")
        return self.public.problem(problem)

    def error(self, error: LimbeckError) -> LimbeckError:
        """An error as clients see it."""
        return LimbeckError(error.reason, self.public(error.message), [self.problem(one) for one in error.problems])

    def values(self, value: Any) -> Any:
        """JSON values as clients see them."""
        if isinstance(value, str):
            return self.public(value)
        if isinstance(value, dict):
            return {key: self.values(one) for key, one in value.items()}
        return [self.values(one) for one in value] if isinstance(value, list) else value

    def _load(self, text: str, registry: Registry, file: Path, *, inputs: bool) -> Recipe:
        try:
            draft = read_recipe(file, registry, text=text, guard=_Guard(self))
        except LimbeckError as error:
            raise self.error(error) from None
        problems = list(draft.problems)
        if draft.recipe is not None and not problems:
            problems = [*(draft.recipe.missing_paths() if inputs else ()), *self._leaks(draft.recipe)]
        if problems or draft.recipe is None:
            message = f"The recipe is not valid: {counted(len(problems), 'problems')}."
            raise LimbeckError(Reason.RECIPE_INVALID, message, [self.problem(one) for one in problems])
        return draft.recipe

    def _leaks(self, recipe: Recipe) -> list[Problem]:
        problems = []
        for use in recipe.paths:
            link = self.borders.leak(use.resolved) if use.resolved.is_dir() else None
            if link is not None:
                message = f"{use.written!r} holds the link {link!r}; what it names {OUTSIDE}"
                problems.append(Problem(message, str(recipe.path), use.line, use.column, use.field))
        return problems


class _Guard:
    """What a recipe from the network may name."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._borders = workspace.borders

    def path(self, written: str) -> None:
        """See `recipe.paths.Guard`."""
        if self._borders.follow(written) is None:
            raise ValueError(f"{OUTSIDE}, not {_shown(written)}")

    def made(self, written: str) -> None:
        """See `recipe.paths.Guard`: what is made lies in the workspace, outside of every run's folder."""
        self._writable(written)

    def hub(self, name: str) -> None:
        """See `recipe.paths.Guard`: only what the server's operator has fetched."""
        if not in_cache(name):
            raise ValueError(f"{_shown(name)} is no folder of the server's workspace, and no model that it has fetched")

    def problems(self, document: Document, told: Collection[str]) -> list[Problem]:
        """See `recipe.paths.Guard`."""
        problems = []
        output = document.at(("output",))
        if isinstance(output, str) and output:
            try:
                self._writable(output)
            except ValueError as fault:
                problems.append(document.problem(("output",), str(fault)))
        for at in document.values:
            value = document.at(at)
            if not isinstance(value, str) or at == ("output",):
                continue
            problem = None
            if str(at[-1] if at else "").endswith("_env") and not value.startswith(LENT):
                message = f"must be a variable that the server lends, which begin with {LENT}, not {_shown(value)}"
                problem = document.problem(at, message)
            elif self._borders.strays(value):
                problem = document.problem(at, f"{OUTSIDE}, not {_shown(value)}")
            if problem is not None and problem.field not in told:
                problems.append(problem)
        return problems

    def _writable(self, written: str) -> None:
        """Raise ValueError where a run may not write."""
        root, place = self._workspace.root, self._borders.follow(written)
        if place is None or not place.is_relative_to(root):
            raise ValueError(f"must lie in the server's workspace, no part of it hidden, not {_shown(written)}")
        if place == root:
            raise ValueError("must be a folder in the workspace, not the workspace itself")
        above = [folder for folder in place.parents if folder.is_relative_to(root)]
        if any((folder / IDENTITY).exists() for folder in above):
            raise ValueError(f"{_shown(written)} lies in the folder of another run")


def _shown(written: str) -> str:
    return repr(written[:80])


def in_cache(name: str) -> bool:
    """Whether the operator has fetched a model of the hub."""
    snapshots = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def hub_cache() -> Path:
    """Where huggingface_hub keeps what was fetched; as its own constants, which importing it would cost."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"
