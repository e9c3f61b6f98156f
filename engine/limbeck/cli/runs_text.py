"""Runs of a server as people and machines read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from limbeck.cli import output
from limbeck.cli.server import short_ids
from limbeck.errors import LimbeckError, counted
from limbeck.report.numbers import duration, short, size

if TYPE_CHECKING:
    from limbeck.client import Checkpoint, Knob, Run, RunDetails

FIGURES = 8  # latest figures that are shown


def record_json(record: Any) -> Any:
    """A record of the client as JSON: times in ISO 8601, an error as elsewhere, what is unknown null."""
    if isinstance(record, LimbeckError):
        return output.error_json(record)["error"]
    if isinstance(record, datetime):
        return record.isoformat().replace("+00:00", "Z")
    if hasattr(record, "__dataclass_fields__"):
        return {field.name: record_json(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, dict):
        return {name: record_json(value) for name, value in record.items()}
    return [record_json(one) for one in record] if isinstance(record, list | tuple) else record


def age(time: datetime) -> str:
    """How long ago, by this machine's clock: `3 min 20 s`."""
    return duration(max((datetime.now(UTC) - time).total_seconds(), 0.0))


def progress_of(run: Run) -> str:
    """`30 of 160 steps`, also of one that rests; the place in the queue for one that waits."""
    parts = [f"number {run.queue_position} in the queue"] if run.queue_position else []
    if run.progress is not None:
        done, total, unit = run.progress.done, run.progress.total, run.progress.unit
        parts.append(f"{done:,} of {counted(total, unit)}" if total else counted(done, unit))
    return ", ".join(parts)


def runs_table(runs: Sequence[Run]) -> Any:
    """One line a run."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "folder", "state", "age", "progress", "loss", box=box.SIMPLE_HEAD, pad_edge=False)
    ids = short_ids(list(runs))
    for run in runs:
        loss = run.metrics.get("loss")
        cells = (ids[run.run_id], run.output, run.state, age(run.created), progress_of(run))
        table.add_row(*map(escape, cells), "" if loss is None else short(loss, 4))
    return table


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> Any:
    """One line a checkpoint."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("step", "size", "age", "folder", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in checkpoints:
        table.add_row(f"{one.step:,}", size(one.bytes), age(one.time), escape(one.path))
    return table


def run_lines(run: RunDetails) -> Iterable[str]:
    """All that is to be said of a run, its error left out."""
    yield f"run       {run.run_id}"
    yield f"folder    {run.output} in the server's workspace"
    if run.owner:
        yield f"owner     {run.owner}"
    starts = f", start {run.attempt}" if run.attempt > 1 else ""
    yield f"state     {run.state} for {age(run.since)}{starts}" + (
        "" if run.ended else f"; on a restart: {run.restart}"
    )
    if far := progress_of(run):
        yield f"progress  {far}"
    if run.metrics:
        told = [name for name in run.metrics if not name.startswith("knobs.")]
        first = sorted(told, key=lambda name: (name != "loss", "." in name, name))[:FIGURES]
        yield "figures   " + ", ".join(f"{name} {short(run.metrics[name], 4)}" for name in first)
    if run.last_sequence < run.oldest_sequence:
        yield "history   removed by the server's retention, with the folder"
    for place, knob in enumerate(run.knobs):
        yield f"{'' if place else 'knobs':<10}{knob.name} = {_value(knob)}{_allowed(knob)}"
    for place, one in enumerate(run.states):
        when = one.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        yield f"{'' if place else 'states':<10}{when} {one.state}"


def _value(knob: Knob) -> str:
    value = "not begun" if knob.value is None else f"{knob.value:g}"
    return f"{value}, by a schedule" if knob.scheduled else value


def _allowed(knob: Knob) -> str:
    if knob.values:
        return f" (allowed: {', '.join(f'{value:g}' for value in knob.values)})"
    limits = (("≥", knob.at_least), (">", knob.above), ("≤", knob.at_most), ("<", knob.below))
    told = [f"{sign} {limit:g}" for sign, limit in limits if limit is not None]
    return f" (allowed: {', '.join(told)})" if told else ""
