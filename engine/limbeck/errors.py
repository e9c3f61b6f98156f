"""The error catalogue: every error a user can meet has a reason, an exit code and a place.

Nothing of Limbeck shows a user a traceback: code raises :class:`LimbeckError` with a :class:`Reason` and, where an
input was wrong, *all* of its :class:`Problem` at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

EXIT_OK = 0
EXIT_FAILED = 1  # work had begun and could not be finished
EXIT_INVALID = 2  # an input was refused before any work
EXIT_STATE = 3  # the input is fine, what lies on disk does not allow it
EXIT_SIGINT = 130  # interrupted; what is needed to resume was saved
EXIT_SIGTERM = 143


class Reason(StrEnum):
    """Stable names of everything that can go wrong; :data:`CATALOGUE` says what each means."""

    RECIPE_INVALID = "RECIPE_INVALID"
    DATA_INVALID = "DATA_INVALID"
    NOTHING_TO_TRAIN = "NOTHING_TO_TRAIN"
    PLUGIN_UNKNOWN = "PLUGIN_UNKNOWN"
    PLUGIN_INVALID = "PLUGIN_INVALID"
    EXTRA_MISSING = "EXTRA_MISSING"
    MODEL_INVALID = "MODEL_INVALID"
    TOKENIZER_MISMATCH = "TOKENIZER_MISMATCH"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    SIGNAL_INVALID = "SIGNAL_INVALID"
    STORE_DAMAGED = "STORE_DAMAGED"
    LOG_DAMAGED = "LOG_DAMAGED"
    FOLDER_NOT_OURS = "FOLDER_NOT_OURS"
    RUN_LOCKED = "RUN_LOCKED"
    RESUME_REFUSED = "RESUME_REFUSED"
    GENERATION_FAILED = "GENERATION_FAILED"
    SCORING_FAILED = "SCORING_FAILED"
    SELF_CHECK_FAILED = "SELF_CHECK_FAILED"
    LOSS_NOT_FINITE = "LOSS_NOT_FINITE"
    KNOB_INVALID = "KNOB_INVALID"
    DISK_FULL = "DISK_FULL"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the catalogue says of one reason."""

    exit_code: int
    text: str


CATALOGUE: dict[Reason, Spec] = {
    Reason.RECIPE_INVALID: Spec(EXIT_INVALID, "The recipe is not valid."),
    Reason.DATA_INVALID: Spec(EXIT_INVALID, "Rows of the data are not valid."),
    Reason.NOTHING_TO_TRAIN: Spec(EXIT_INVALID, "No token is left to train on."),
    Reason.PLUGIN_UNKNOWN: Spec(EXIT_INVALID, "A plugin of this name is not installed."),
    Reason.PLUGIN_INVALID: Spec(EXIT_INVALID, "A plugin breaks the rules of its hook."),
    Reason.EXTRA_MISSING: Spec(EXIT_INVALID, "A part of Limbeck that is needed here is not installed."),
    Reason.MODEL_INVALID: Spec(EXIT_INVALID, "A model cannot be used here."),
    Reason.TOKENIZER_MISMATCH: Spec(EXIT_INVALID, "Teacher and student do not share a tokenizer."),
    Reason.CAPABILITY_MISSING: Spec(EXIT_INVALID, "The teacher cannot give what a loss needs."),
    Reason.SIGNAL_INVALID: Spec(EXIT_FAILED, "A teacher's signal is not valid."),
    Reason.STORE_DAMAGED: Spec(EXIT_STATE, "A stored file is damaged."),
    Reason.LOG_DAMAGED: Spec(EXIT_STATE, "An append-only log is damaged before its last line."),
    Reason.FOLDER_NOT_OURS: Spec(EXIT_STATE, "The output folder holds something else."),
    Reason.RUN_LOCKED: Spec(EXIT_STATE, "Another process works on this run."),
    Reason.RESUME_REFUSED: Spec(EXIT_STATE, "The run cannot be resumed as it is."),
    Reason.GENERATION_FAILED: Spec(EXIT_FAILED, "The generator gave too few usable rows."),
    Reason.SCORING_FAILED: Spec(EXIT_FAILED, "The teacher could not score."),
    Reason.SELF_CHECK_FAILED: Spec(EXIT_FAILED, "A self-check of the model's numbers failed."),
    Reason.LOSS_NOT_FINITE: Spec(EXIT_FAILED, "A loss is not finite."),
    Reason.KNOB_INVALID: Spec(EXIT_FAILED, "A knob left its allowed range."),
    Reason.DISK_FULL: Spec(EXIT_FAILED, "The disk is full."),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of an input: what was wrong, where, and what to do.

    `message` says what was wrong with which value and what is allowed; `hint` what to do. `line` and `column` count
    from 1. `field` is a path as a user would write it: ``losses[0].temperature``, ``messages[1].weight``.
    """

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    field: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = self.file or ""
        for number in (self.line, self.column):
            if number is not None:
                place += f":{number}" if place else f"line {number}"
        where = " ".join(
            part for part in (f"{place}:" if place else "", f"{self.field}:" if self.field else "") if part
        )
        text = f"{where} {self.message}".strip()
        return f"{text} ({self.hint})" if self.hint else text


class LimbeckError(Exception):
    """An error with a reason of the catalogue and every problem of the input that caused it.

    `message` is a sentence for a person and defaults to the catalogue's.
    """

    def __init__(self, reason: Reason, message: str | None = None, problems: Sequence[Problem] = ()) -> None:
        self.reason = reason
        self.message = message or CATALOGUE[reason].text
        self.problems = tuple(problems)
        super().__init__(self.message)

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this error."""
        return CATALOGUE[self.reason].exit_code

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {problem}" for problem in self.problems)])

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.message, self.problems))


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
