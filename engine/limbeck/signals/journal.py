"""The journal of a signal store: which shards are there, how long, with which checksum, for which sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import read_json_lines
from limbeck.signals.shard import damage

JOURNAL = "journal.jsonl"
_ANEW = "label again: the journal is made anew from the shards"
_AGAIN = "label again: the file is set aside, and only these sequences are captured again"


@dataclass(frozen=True, slots=True)
class Listed:
    """A shard as the journal names it."""

    name: str
    size: int
    sha256: str
    indexes: tuple[int, ...]

    def line(self) -> dict[str, Any]:
        """The shard's line of the journal."""
        return {"shard": self.name, "bytes": self.size, "sha256": self.sha256, "sequences": _spans(self.indexes)}

    def damage(self, folder: Path) -> str | None:
        """What is wrong with the file, None where it is whole."""
        return damage(folder / self.name, self.size, self.sha256, self.indexes)

    def problem(self, folder: Path, what: str, *, first: int = 0) -> Problem:
        """The fault of this shard as a user reads it, to whom the first sequence of all is number `first`."""
        spans = _spans_text([index + first for index in self.indexes])
        message = f"{what}; it holds the signals of sequences {spans}"
        return Problem(message, file=str(folder / self.name), hint=_AGAIN)


def read_journal(folder: Path) -> dict[str, Listed]:
    """The shards that the journal names, in order. A torn last line is no damage: that shard is found again."""
    path = folder / JOURNAL
    shards: dict[str, Listed] = {}
    number = 0
    try:
        for number, line in read_json_lines(path):  # noqa: B007 (read where a line is not understood)
            if "dropped" in line:
                shards.pop(line["dropped"], None)
            else:
                indexes = tuple(i for first, last in line["sequences"] for i in range(first, last + 1))
                shards[line["shard"]] = Listed(line["shard"], line["bytes"], line["sha256"], indexes)
    except LimbeckError as error:
        problems = [Problem(found.message, found.file, found.line, hint=_ANEW) for found in error.problems]
        raise LimbeckError(Reason.STORE_DAMAGED, problems=problems) from error
    except (KeyError, TypeError, ValueError) as error:
        problem = Problem("not a line of the journal of signals", str(path), number, hint=_ANEW)
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[problem]) from error
    return shards


def _spans(indexes: Sequence[int]) -> list[list[int]]:
    """Ascending indexes as [first, last] pairs."""
    spans: list[list[int]] = []
    for index in indexes:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return spans


def _spans_text(indexes: Sequence[int], limit: int = 8) -> str:
    spans = _spans(indexes)
    shown = ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in spans[:limit])
    return shown + (f" and {len(spans) - limit} more spans" if len(spans) > limit else "")
