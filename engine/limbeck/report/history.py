"""What a run's events say: curves by stage, time by stage, warnings. Rewound steps are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict
from pydantic import Field

from limbeck.files import read_json_lines
from limbeck.report.evaluation import Part
from limbeck.v1.event_pb2 import Event


class Series(Part):
    """One figure over a stage: `values[i]` was said at optimizer step `steps[i]`; steps rise."""

    steps: list[int]
    values: list[float]


class StageTime(Part):
    """One stage, over all attempts."""

    name: str
    seconds: float = Field(0.0, description="Seconds spent on it in all attempts, interrupted ones included.")
    attempts: int = Field(0, description="Attempts that worked on it; those which found it done are not counted.")
    digest: str | None = Field(None, description="Digest of what it was made from; null while it is not finished.")
    figures: dict[str, float] = Field(default_factory=dict, description="Figures of the stage, e.g. rows, rejected.")


class Warned(Part):
    """A warning that the run gave, once for all repetitions."""

    reason: str
    message: str
    times: int = 1


class Rewind(Part):
    """A resume that went back to a checkpoint."""

    stage: str
    attempt: int
    to_step: int
    rejected: list[str] = Field(description="Checkpoints that were passed over, each with its fault.")


class History(Part):
    """Everything that the report takes from a run's events."""

    attempts: int = 0
    stages: list[StageTime] = Field(default_factory=list)
    series: dict[str, dict[str, Series]] = Field(
        default_factory=dict, description="By stage, then by name of the metric; knobs are `knobs.losses.NAME.FIELD`."
    )
    rewinds: list[Rewind] = Field(default_factory=list)
    warnings: list[Warned] = Field(default_factory=list)


def read_history(path: Path) -> History:
    """Read an events.jsonl, also one that is being written. Raises LOG_DAMAGED."""
    reader = _Reader()
    for _, value in read_json_lines(path):
        reader.take(ParseDict(value, Event(), ignore_unknown_fields=True))
    return reader.history()


class _Reader:
    def __init__(self) -> None:
        self._said: dict[str, dict[str, dict[int, float]]] = {}
        self._stages: dict[str, StageTime] = {}
        self._open: tuple[str, float, float] | None = None  # stage at work, seconds of its first and latest event
        self._warnings: dict[tuple[str, str], Warned] = {}
        self._rewinds: list[Rewind] = []
        self._attempts = 0

    def take(self, event: Event) -> None:
        """Add one event; they come in order."""
        self._attempts = max(self._attempts, event.attempt)
        now = event.time.seconds + event.time.nanos / 1e9
        if self._open and self._open[0] == event.stage:
            self._open = (event.stage, self._open[1], now)
        kind = event.WhichOneof("kind")
        if kind in ("run_started", "run_failed", "run_interrupted"):
            self._break_off()
        elif kind == "stage_started":
            self._break_off()
            self._stages.setdefault(event.stage, StageTime(name=event.stage))
            self._open = (event.stage, now, now)
        elif kind == "stage_finished":
            self._finish(event)
        elif kind == "metrics":
            for name, value in event.metrics.values.items():
                self._curve(event.stage, name)[event.step] = value
        elif kind == "knob_changed":
            curve = self._curve(event.stage, f"knobs.{event.knob_changed.knob}")
            if not curve:
                curve[0] = event.knob_changed.before
            curve[event.step] = event.knob_changed.after
        elif kind == "rewound":
            self._rewind(event)
        elif kind == "warning":
            said: Any = event.warning  # type checkers take its class for the built-in Warning
            key = (said.reason, said.message)
            if key in self._warnings:
                self._warnings[key].times += 1
            else:
                self._warnings[key] = Warned(reason=key[0], message=key[1])

    def history(self) -> History:
        """What was said, with what was rewound left out."""
        self._break_off()
        series = {
            stage: {
                name: Series(steps=sorted(curve), values=[curve[step] for step in sorted(curve)])
                for name, curve in sorted(curves.items())
                if curve
            }
            for stage, curves in self._said.items()
        }
        return History(
            attempts=self._attempts,
            stages=list(self._stages.values()),
            series={stage: curves for stage, curves in series.items() if curves},
            rewinds=self._rewinds,
            warnings=list(self._warnings.values()),
        )

    def _curve(self, stage: str, name: str) -> dict[int, float]:
        return self._said.setdefault(stage, {}).setdefault(name, {})

    def _break_off(self) -> None:
        """Count the time of a stage that an attempt left unfinished: from its start to the last word of it."""
        if self._open:
            name, first, latest = self._open
            self._stages[name].seconds += latest - first
            self._stages[name].attempts += 1
            self._open = None

    def _finish(self, event: Event) -> None:
        stage = self._stages.setdefault(event.stage, StageTime(name=event.stage))
        said = event.stage_finished
        stage.digest = said.digest or None
        if said.figures:
            stage.figures = dict(sorted(said.figures.items()))
        if not said.skipped:
            stage.seconds += said.seconds
            stage.attempts += 1
        self._open = None

    def _rewind(self, event: Event) -> None:
        said = event.rewound
        for curve in self._said.get(event.stage, {}).values():
            for step in [step for step in curve if step > said.to_step]:
                del curve[step]
        self._rewinds.append(
            Rewind(stage=event.stage, attempt=event.attempt, to_step=said.to_step, rejected=list(said.rejected))
        )
