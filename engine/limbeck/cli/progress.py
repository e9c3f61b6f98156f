"""What a person or a machine sees of a run while it works: bars on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import click

from limbeck.cli import output
from limbeck.errors import counted
from limbeck.report.numbers import duration
from limbeck.report.rows import plain_figures
from limbeck.report.spending import PREFIX, cost_text, counts_text, spending_text
from limbeck.runs.events import to_json
from limbeck.signals.messages import problem_of
from limbeck.v1.event_pb2 import Event, RunState, StageStarted
from limbeck.v1.event_pb2 import Progress as ProgressSaid

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 60.0  # a slow stage says at least so often how far it is
SHARES = 4  # plain lines of a stage: one at each quarter
FIGURES = 6  # figures of a stage that are shown
EVALUATED = ("perplexity", "forward_kl", "top1_agreement", "preference_accuracy")  # of a model's
WIDTH = 60  # characters of a text that are shown


class Display(Protocol):
    """Shows a run's events; `gone` is True once nobody reads them any more. Never raises in `__call__`."""

    gone: bool

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(*, as_json: bool, remote: bool = False) -> Display:
    """JSON lines for `--json`, live bars where stdout is a terminal, plain lines elsewhere.

    `remote`: the run is elsewhere, so that what its libraries said has not been seen here on stderr.
    """
    import sys

    if as_json:
        return JsonLines()
    return Bars(remote=remote) if sys.stdout.isatty() else Lines(remote=remote)


class _Open:
    """Nothing to open or close."""

    gone = False

    def __enter__(self) -> _Open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonLines(_Open):
    """Each event's JSON mapping on a line of its own."""

    def __call__(self, event: Event) -> None:
        if self.gone:
            return
        try:
            output.emit_json(json.loads(to_json(event)), line=True)
        except BrokenPipeError:
            self.gone = True


class Clock:
    """How fast a stage is: from its start in this attempt, which `at` says by the run's clock."""

    def __init__(self, done: int, total: int, unit: str, at: Timestamp | None = None) -> None:
        self.start, self.done, self.total, self.unit = done, done, total, unit
        self.began = time.monotonic()
        self._at = at
        self.loss: float | None = None
        self.spent: dict[str, float] = {}  # what the teacher counts, over all attempts

    def take(self, metrics: Mapping[str, float]) -> None:
        """Remember the figures that are shown beside the progress."""
        self.loss = metrics.get("loss", self.loss)
        self.spent = {name: value for name, value in metrics.items() if name.startswith(PREFIX)} or self.spent

    def hear(self, at: Timestamp) -> None:
        """Something was said then: a history that is read later took as long as it says, not as long as the reading."""
        if self._at is not None and self._at.seconds:
            said = at.ToNanoseconds() - self._at.ToNanoseconds()
            self.began = min(self.began, time.monotonic() - said / 1e9)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float | None:
        """Items a second, None before there is one."""
        made = self.done - self.start
        return made / self.seconds if made > 0 and self.seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds that are left, where the total is known."""
        rate = self.rate
        return (self.total - self.done) / rate if rate and self.total else None


class Lines(_Open):
    """A few lines a stage, without any control code."""

    def __init__(self, *, remote: bool = False) -> None:
        self._remote = remote
        self._clock = Clock(0, 0, "")
        self._told = 0.0
        self._share = 0
        self._knobs: dict[tuple[str, str], int] = {}

    def __call__(self, event: Event) -> None:
        kind = event.WhichOneof("kind")
        self._clock.hear(event.time)
        line = None
        if kind == "stage_started":
            said = event.stage_started
            self._clock = Clock(said.done, said.total, said.unit, event.time)
            self._told, self._share = time.monotonic(), self._quarter()
            line = started_text(event)
        elif kind == "metrics":
            self._clock.take(event.metrics.values)
            if self._clock.spent:  # a teacher that is paid for: it may be long at one answer
                line = self._due(event.stage)
        elif kind == "progress":
            if not self._clock.unit:  # whoever watches from here on has not seen the stage begin
                said_now = event.progress
                self._clock = Clock(said_now.done, said_now.total, said_now.unit, event.time)
            self._clock.done = event.progress.done
            line = self._due(event.stage)
        else:
            line = message_text(event, self._knobs, remote=self._remote)
        if line is not None:
            self._say(line)

    def _due(self, stage: str) -> str | None:
        """How far the stage is, where a quarter more is done, or nothing was said for a while."""
        late = time.monotonic() - self._told >= PLAIN_SECONDS
        whole = self._clock.total and self._clock.done >= self._clock.total
        if whole or not (self._quarter() > self._share or late):
            return None
        self._told, self._share = time.monotonic(), self._quarter()
        return f"{stage}: {progress_text(self._clock)}"

    def _quarter(self) -> int:
        return SHARES * self._clock.done // self._clock.total if self._clock.total else 0

    def _say(self, line: str) -> None:
        if self.gone:
            return
        try:
            click.echo(line)
        except BrokenPipeError:
            self.gone = True


class Bars:
    """A bar with rate and time left for the stage at work, one line for each that is done."""

    gone = False

    def __init__(self, *, remote: bool = False) -> None:
        from rich.progress import BarColumn, Progress, Task, TextColumn
        from rich.text import Text

        class Told(TextColumn):
            """Of what has no end that is known, also how long it has lasted."""

            def render(self, task: Task) -> Text:
                seconds = f", {duration(task.elapsed or 0.0)}" if task.fields.get("waits") else ""
                return Text(f"{task.fields['text']}{seconds}")

        columns = (TextColumn("{task.description:<9}"), BarColumn(), Told(""))
        self._remote = remote
        self._console = output.console()
        self._progress: Progress = Progress(*columns, console=self._console, transient=True)
        self._task: TaskID | None = None
        self._waits = False  # the task is no stage's yet: a state that has begun, a teacher that starts
        self._clock = Clock(0, 0, "")
        self._knobs: dict[tuple[str, str], int] = {}

    def __call__(self, event: Event) -> None:
        kind = event.WhichOneof("kind")
        self._clock.hear(event.time)
        if kind == "stage_started":
            self._begin(event, event.stage_started)
        elif kind == "teacher_starting" and (self._task is None or self._waits):
            self._drop()
            if event.teacher_starting.phase:
                text = f"the teacher starts: {event.teacher_starting.phase}"
                self._task = self._progress.add_task(event.stage, total=None, text=text, waits=True)
                self._waits = True
        elif kind == "metrics":
            self._clock.take(event.metrics.values)
            if self._clock.spent and self._task is not None:
                self._progress.update(self._task, text=progress_text(self._clock))
        elif kind == "progress" and (self._task is None or self._waits):  # nobody here has seen the stage begin
            self._begin(event, event.progress)
        elif kind == "progress" and self._task is not None:
            self._clock.done = event.progress.done
            self._progress.update(self._task, completed=event.progress.done, text=progress_text(self._clock))
        else:
            line = message_text(event, self._knobs, remote=self._remote)
            if kind in ("stage_finished", "run_finished", "run_failed", "run_interrupted") or (
                kind == "state_changed" and self._waits
            ):
                self._drop()
            if line is not None:
                self._console.print(line, markup=False, highlight=False)
            if kind == "state_changed" and self._task is None:
                self._enter(state_name(event))

    def _enter(self, state: str) -> None:
        """Move while a stage reads its models: that it works is all that is known."""
        if state in _BEGINS:
            name, text = _BEGINS[state]
            self._task, self._waits = self._progress.add_task(name, total=None, text=text), True

    def _begin(self, event: Event, said: StageStarted | ProgressSaid) -> None:
        self._drop()
        self._clock = Clock(said.done, said.total, said.unit, event.time)
        text = progress_text(self._clock)
        self._task = self._progress.add_task(event.stage, total=said.total or None, completed=said.done, text=text)

    def _drop(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task, self._waits = None, False

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def started_text(event: Event) -> str:
    """What is said when a stage begins."""
    said = event.stage_started
    total = counted(said.total, said.unit) if said.total else said.unit
    before = f", {said.done:,} done before" if said.done else ""
    return f"{event.stage}: {total}{before}"


def progress_text(clock: Clock) -> str:
    """`40 of 160 rows, 2.1 rows/s, 57 s left, loss 1.23`; what a paid teacher took, and is about to take in all."""
    of = f"{clock.done:,} of {counted(clock.total, clock.unit)}" if clock.total else counted(clock.done, clock.unit)
    parts = [of]
    if clock.rate is not None:
        parts.append(f"{clock.rate:,.3g} {clock.unit}/s" if clock.rate < 1000 else f"{clock.rate:,.0f} {clock.unit}/s")
    if clock.left is not None:
        parts.append(f"{duration(clock.left)} left")
    if clock.loss is not None:
        parts.append(f"loss {clock.loss:.4g}")
    # the cost first: a narrow terminal cuts what comes last
    parts += [told for told in (cost_text(clock.spent), counts_text(clock.spent)) if told is not None]
    return ", ".join(parts)


def message_text(event: Event, knobs: dict[tuple[str, str], int], *, remote: bool = False) -> str | None:
    """The line that an event leaves behind; None for one that leaves none.

    `knobs`, kept here between calls: by stage and name, the step of each knob's latest change. A ramp, which moves at
    each step, is told once. `remote`: the run is elsewhere, so that its states, errors and logs are known from events
    alone.
    """
    kind = event.WhichOneof("kind")
    if kind == "stage_finished":
        said = event.stage_finished
        plain = sorted(plain_figures(said.figures).items())
        figures = [f"{name} {_figure(value)}" for name, value in plain if value][:FIGURES]
        figures += [spent] if (spent := spending_text(said.figures)) is not None else []
        how = "there already" if said.skipped else f"done in {duration(said.seconds)}"
        return f"{event.stage}: {how}" + (f" ({', '.join(figures)})" if figures else "")
    if kind == "warning":
        told: Any = event.warning  # the stub's own Warning hides the message's
        return f"warning: {told.message} [{told.reason}]"
    if kind == "teacher_starting":
        phase = event.teacher_starting.phase
        return f"{event.stage}: the teacher " + (f"starts: {phase}" if phase else "is ready")
    if kind == "rewound":
        said_of = event.rewound
        start = f"from step {said_of.to_step}" if said_of.to_step else "from the start"
        lines = [f"{event.stage}: goes on {start}", *(f"  passed over {fault}" for fault in said_of.rejected)]
        return "\n".join(lines)
    if kind == "evaluation":
        known = event.evaluation.figures
        figures = [f"{name} {_figure(known[name])}" for name in EVALUATED if name in known]
        return f"{event.stage}: {event.evaluation.model}: {', '.join(figures)}" if figures else None
    if kind == "sample":
        shown = event.sample
        return f"{event.stage}: {shown.model}: {_brief(shown.prompt, end=True)} → {_brief(shown.text)}"
    if remote and kind == "log":
        return f"{event.log.level.lower()}: {_brief(event.log.message, 4 * WIDTH)} [{event.log.logger}]"
    if remote and kind == "state_changed":
        return _state_text(event)
    if kind == "knob_changed" and event.knob_changed.before != event.knob_changed.after:
        said_knob = event.knob_changed
        key = (event.stage, said_knob.knob)
        former, knobs[key] = knobs.get(key), event.step
        if former is not None and event.step - former <= 1:
            return None
        return f"{event.stage}: {said_knob.knob} {said_knob.before:g} → {said_knob.after:g} at step {event.step}"
    return None


_BEGINS = {  # states in which something works, by the name of the stage that is to come
    "validating": ("check", "looks at the recipe"),
    "generating": ("generate", "begins"),
    "preparing": ("prepare", "begins"),
    "labelling": ("label", "begins"),
    "training": ("train", "begins"),
    "evaluating": ("evaluate", "begins"),
    "reporting": ("report", "begins"),
}
_WORTH_A_LINE = ("queued", "pausing", "paused", "cancelling", "cancelled", "failed", "succeeded")  # no stage says it


def state_name(event: Event) -> str:
    """The state that a run is in now, as people write it."""
    return RunState.Name(event.state_changed.state).removeprefix("RUN_STATE_").lower()


def _state_text(event: Event) -> str | None:
    """Of a run that is elsewhere; what failed it, with what to do."""
    said, name = event.state_changed, state_name(event)
    if name not in _WORTH_A_LINE:
        return None
    lines = [name]
    if said.HasField("error"):
        lines[0] += f": {said.error.message} [{said.error.reason}]"
        lines += [f"  {problem_of(problem)}" for problem in said.error.problems]
    return "\n".join(lines)


def _brief(text: str, width: int = WIDTH, *, end: bool = False) -> str:
    """A text of a model or a library in a line, without control codes; `end`: its end rather than its beginning."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if len(line) <= width:
        return line
    return "…" + line[1 - width :] if end else line[: width - 1] + "…"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.6g}"
