"""The folder of a run: empty or its own, one writer, and what was written there."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import limbeck
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import FolderLock, write_atomic, write_json
from limbeck.recipe.resolved import dump_yaml
from limbeck.runs.events import EVENTS

IDENTITY = "run.json"
LOG = "log.txt"  # what a run's processes print, where a server keeps them
_TRACES = {".lock", f".{IDENTITY}.partial"}  # what a start that was killed at once may leave


@dataclass(frozen=True, slots=True)
class Identity:
    """Content of run.json: which run a folder belongs to, and where its recipe lay at the last start.

    `recipe` is relative to the folder, so that it still holds after both moved together; `recipe_absolute` is where it
    was.
    """

    run_id: str
    limbeck_version: str
    created: str
    recipe: str = ""
    recipe_absolute: str = ""


def read_identity(folder: Path) -> Identity | None:
    """The run that `folder` belongs to, or None. Raises FOLDER_NOT_OURS for a run.json that is not Limbeck's."""
    file = folder / IDENTITY
    if not file.is_file():
        return None
    try:
        return Identity(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise _not_ours(folder, f"{IDENTITY} is not one of Limbeck's") from error


def check_folder(folder: Path) -> Identity | None:
    """The run that `folder` belongs to, None where it is empty or missing. Changes nothing, raises FOLDER_NOT_OURS."""
    if folder.exists() and not folder.is_dir():
        raise _not_ours(folder, "it is not a folder")
    identity = read_identity(folder)
    if identity is None and folder.is_dir():
        found = sorted(path.name for path in folder.iterdir() if path.name not in _TRACES)
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise _not_ours(folder, f"it holds {', '.join(found[:3])}{more}, and no {IDENTITY}")
    return identity


def _not_ours(folder: Path, what: str) -> LimbeckError:
    hint = "give another `output`, or empty the folder; nothing in it was touched"
    return LimbeckError(Reason.FOLDER_NOT_OURS, problems=[Problem(what, file=str(folder), field="output", hint=hint)])


class RunFolder:
    """A run's folder, held for writing until it is closed.

    Raises FOLDER_NOT_OURS where it holds something else, RUN_LOCKED where another process writes there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        check_folder(self.path)
        self._lock = FolderLock(self.path)
        try:
            found = check_folder(self.path)  # again: only now nobody else can begin here
            self.is_new = found is None
            self.identity = found or Identity(uuid.uuid4().hex, limbeck.__version__, datetime.now(UTC).isoformat())
            if found is None:
                write_json(self.path / IDENTITY, asdict(self.identity))
        except BaseException:
            self._lock.release()
            raise

    @property
    def run_id(self) -> str:
        """The run's id, in each of its events."""
        return self.identity.run_id

    @property
    def events(self) -> Path:
        """The run's history."""
        return self.path / EVENTS

    @property
    def resolved(self) -> Path:
        """The recipe with every default, version and digest filled in."""
        return self.path / "resolved.yaml"

    def record(self, recipe: Path, text: str, resolved: dict[str, Any]) -> None:
        """Write the recipe as the user wrote it, as it was understood, and where it lies."""
        where = recipe.absolute()
        self.identity = Identity(
            run_id=self.identity.run_id,
            limbeck_version=limbeck.__version__,
            created=self.identity.created,
            recipe=str(_relative(where, self.path)),
            recipe_absolute=str(where),
        )
        write_json(self.path / IDENTITY, asdict(self.identity))
        write_atomic(self.path / "recipe.yaml", text)
        write_atomic(self.resolved, dump_yaml(resolved))  # last: it says that there is something to resume

    def close(self) -> None:
        """Let another process write; a second call does nothing."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _relative(path: Path, start: Path) -> Path:
    import os

    return Path(os.path.relpath(path, start))


def find_recipe(folder: Path) -> Path:
    """Where the recipe of the run in `folder` lies now: moved together with the folder, or left where it was.

    Raises RESUME_REFUSED where `folder` is no run, or names both places where the recipe is gone.
    """
    identity = read_identity(folder)
    if identity is None or not identity.recipe:
        hint = "give the recipe's path, or the folder that the recipe calls `output`"
        raise LimbeckError(
            Reason.RESUME_REFUSED, problems=[Problem("there is no run here", file=str(folder), hint=hint)]
        )
    places = [(folder / identity.recipe).resolve(), Path(identity.recipe_absolute)]
    for place in places:
        if place.is_file():
            return place
    looked = " nor ".join(dict.fromkeys(map(str, places)))
    hint = f"give the place it moved to: limbeck resume RECIPE; a copy of its text is {folder / 'recipe.yaml'}"
    problem = Problem(f"the run's recipe is neither {looked}", file=str(folder), hint=hint)
    raise LimbeckError(Reason.RESUME_REFUSED, problems=[problem])


def refuse_elsewhere(folder: Path, recipe: Path, output: Path) -> None:
    """Raise RESUME_REFUSED where the recipe of the run in `folder` now writes into another: `folder` is a copy, say."""
    if folder.resolve() != output.resolve():
        hint = f"limbeck resume {recipe} goes on there; to go on here, write output: {folder.resolve()}"
        problem = Problem(f"the run's recipe, {recipe}, has output: {output}", file=str(folder), hint=hint)
        raise LimbeckError(Reason.RESUME_REFUSED, problems=[problem])
