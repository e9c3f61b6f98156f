"""What a server and the process of a run say to each other: JSON objects, one a line, both ways over a stream socket.

=================================================  ================================================================
from the server
``{"start": {"do", "recipe", "resume", …}}``        first, and once: see :class:`Start`
``{"stop": "pause"|"cancel"|"server"}``             stop where the run can go on
``{"knobs": {"id": N, "values": {NAME: VALUE}}}``   other values from the next optimizer step on; ids only grow
``{"checkpoint": ID}``                              save one after the step under way
from the process
``{"tick": SEQUENCE}``                              an event is on disk
``{"knobs": N}``                                    values of that id are journalled, or an event says why not
``{"checkpoint": ID, "path", "step", "bytes"}``     it is whole; or ``{"checkpoint": ID, "error": E}``
``{"checked": {"error": E|null, "warnings": [P…], "resolved": {…}, "facts": {…}}}``   what a check found
``{"ended": HOW, "signal": NAME|null, "error": E|null}``   last; HOW: succeeded, interrupted or failed
=================================================  ================================================================

E is ``{"reason", "message", "problems": [P…]}`` and P ``{"message", "file", "line", "column", "field", "hint"}``, None
where unknown. What the server says after `start` may come in any order and any number of times.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from limbeck.errors import LimbeckError, Problem, Reason, sayable

LARGEST = 16 << 20  # bytes of one line: recipes and lists of problems are far below

Message = dict[str, Any]
Ending = Literal["succeeded", "interrupted", "failed"]
NONSENSE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)  # raised by messages of a wrong shape


@dataclass(frozen=True, slots=True)
class Start:
    """What a process is for. `recipe` is the file in the workspace; `read`: other folders that may be read."""

    do: Literal["run", "check"]
    recipe: Path
    workspace: Path
    read: Sequence[Path] = ()
    resume: bool = False

    def message(self) -> Message:
        """As it travels."""
        start = {"do": self.do, "recipe": str(self.recipe), "resume": self.resume}
        return {"start": start | {"workspace": str(self.workspace), "read": [str(path) for path in self.read]}}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Start:
        """Of the first message. Raises KeyError where it is another."""
        start = message["start"]
        read = tuple(Path(path) for path in start["read"])
        return cls(start["do"], Path(start["recipe"]), Path(start["workspace"]), read, bool(start["resume"]))


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at a recipe found."""

    error: LimbeckError | None
    warnings: Sequence[Problem]
    resolved: Mapping[str, Any]
    facts: Mapping[str, Any]

    def message(self) -> Message:
        """As it travels."""
        found = {
            "error": None if self.error is None else error_fields(self.error),
            "warnings": [problem_fields(problem) for problem in self.warnings],
            "resolved": self.resolved,
            "facts": self.facts,
        }
        return {"checked": found}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Checked:
        """Of a message that came. Raises one of NONSENSE where it is another."""
        found = message["checked"]
        warnings = [problem_of(problem) for problem in found["warnings"]]
        return cls(_error_in(found), warnings, found["resolved"] | {}, found["facts"] | {})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process said to end."""

    how: Ending
    error: LimbeckError | None

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Ended:
        """Of a message that came. Raises one of NONSENSE where it is another."""
        if message["ended"] not in get_args(Ending):
            raise ValueError(f"{message['ended']!r} is no end")
        return cls(message["ended"], _error_in(message))


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as its line. ASCII, so that no text can break it, not even half of a surrogate pair."""
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > LARGEST:
        raise ValueError(f"a message of {len(line):,} bytes, allowed are {LARGEST:,}")
    return line


class Decoder:
    """Messages out of the bytes of a stream, however they are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises ValueError for what cannot be one."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        if len(rest) > LARGEST:
            raise ValueError(f"a line of more than {LARGEST:,} bytes")
        return [_parse(bytes(line)) for line in lines]


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError as error:  # bad UTF-8 is one too
        raise ValueError(f"a line is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ValueError("a line is not JSON of an object")
    return message


def error_fields(error: LimbeckError) -> Message:
    """An error as it travels: E above."""
    problems = [problem_fields(problem) for problem in error.problems]
    return {"reason": str(error.reason), "message": error.message, "problems": problems}


def problem_fields(problem: Problem) -> Message:
    """A problem as it travels: P above."""
    return asdict(problem)


def error_of(fields: Mapping[str, Any]) -> LimbeckError:
    """An error that came. Raises one of NONSENSE for what is none."""
    problems = [problem_of(one) for one in fields["problems"]]
    return LimbeckError(Reason(fields["reason"]), sayable(fields["message"]), problems)


def problem_of(fields: Mapping[str, Any]) -> Problem:
    """A problem that came. Raises one of NONSENSE for what is none."""
    texts = {name: sayable(text) for name in ("file", "field", "hint") if (text := fields[name]) is not None}
    problem = Problem(**{**fields, **texts, "message": sayable(fields["message"])})
    if not all((number or 0) in range(1 << 32) for number in (problem.line, problem.column)):
        raise ValueError(f"{problem} is at no place of a file")
    return problem


def _error_in(fields: Mapping[str, Any]) -> LimbeckError | None:
    return None if fields["error"] is None else error_of(fields["error"])
