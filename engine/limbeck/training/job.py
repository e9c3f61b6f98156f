"""What a training is given and what it gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.data.sequence import TokenSequence
from limbeck.training.sources import BatchSource
from limbeck.training.student import Student

if TYPE_CHECKING:
    from limbeck.recipe import BoundLoss, Recipe

__all__ = ["BatchSource", "EventSink", "TrainJob", "TrainResult", "fingerprint"]

# Settings that change no number of the training, so a resume may change them.
_FREE = ("logging_steps", "logging_first_step", "save_steps", "save_strategy", "save_total_limit")


class EventSink(Protocol):
    """Takes the messages of an Event's kinds; ``runs.EventLog`` is one."""

    def emit(self, message: Any, *, step: int | None = None) -> object: ...


@dataclass(frozen=True)
class TrainJob:
    """One training. `folder` holds its checkpoints (`RUN/checkpoints/student`).

    `student` builds the model, the same at each call. `losses` None: the recipe's. `data_digest`: of the sequences and
    their signals, compared at a resume. `allow_changed`: go on from a checkpoint of other settings. `run_folder`: what
    paths in events are relative to; two above `folder` where left out.
    """

    recipe: Recipe
    sequences: Sequence[TokenSequence]
    source: BatchSource
    folder: Path
    student: Callable[[], Student]
    losses: Sequence[BoundLoss] | None = None
    teacher_hidden_size: int | None = None
    data_digest: str = ""
    allow_changed: bool = False
    run_folder: Path | None = None

    @property
    def terms(self) -> Sequence[BoundLoss]:
        """The losses in use."""
        return self.recipe.losses if self.losses is None else self.losses

    def relative(self, path: Path) -> str:
        """A path as events give it."""
        return path.relative_to(self.run_folder or self.folder.parent.parent).as_posix()


@dataclass(frozen=True)
class TrainResult:
    """`model`: plain, in evaluation mode. `interrupted`: the signal that stopped it, None where it is finished.

    `figures`: `steps`, `tokens` (trained in all), and the last logged `loss`.
    """

    model: Any
    tokenizer_folder: Path
    interrupted: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


def fingerprint(job: TrainJob, arguments: Mapping[str, Any], world_size: int, threads: int) -> dict[str, Any]:
    """Everything that the numbers of a training follow from, as flat JSON: dotted name to value.

    Paths are left out, so that a run may move: the digests of stages cover what lies there.
    """
    parts = {
        "student": job.recipe.student.model_dump(mode="json", by_alias=True),
        "losses": {loss.name: loss.dump() for loss in job.terms},
        "training": {name: value for name, value in arguments.items() if name not in _FREE},
        "signals": {"source": job.recipe.signals.source},
        "data": {"rows": len(job.sequences), "digest": job.data_digest},
        "processes": world_size,
        "threads": threads,
    }
    return {name: value for name, value in _flat("", parts) if not (isinstance(value, str) and os.path.isabs(value))}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, what changed) for each name on which two fingerprints differ."""
    return [
        (name, f"was {before.get(name)!r}, is now {now.get(name)!r}")
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(prefix, value)]
    return [item for key, inner in value.items() for item in _flat(f"{prefix}.{key}".lstrip("."), inner)]
