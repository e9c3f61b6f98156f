"""The stage mechanism: what a stage is, when it is run again, and where its former output goes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from limbeck.errors import LimbeckError
from limbeck.files import digest, write_json
from limbeck.runs.changes import differences
from limbeck.runs.contents import Contents
from limbeck.runs.desk import TeacherDesk
from limbeck.runs.events import EventLog
from limbeck.v1.event_pb2 import Progress, StageFinished, StageStarted

if TYPE_CHECKING:
    from limbeck.recipe import Recipe
    from limbeck.steering import Steering

PROGRESS_SECONDS = 1.0
NAMED_FIELDS, NAMED = 4, 40  # changes that a warning names, and characters of each value
Figures = dict[str, float]


class Interrupted(Exception):
    """A signal asked the run to stop, and it stopped where it can go on."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass
class Run:
    """What every stage is given: the recipe, digests of what it reads, the folder, the history, the stop signal.

    `desk` holds the teacher between stages. `allow_changed`: training goes on from a checkpoint of another recipe.
    `steering`: what is asked of the training while it works. `entered` is told of each stage that begins.
    """

    recipe: Recipe
    contents: Contents
    path: Path
    log: EventLog
    desk: TeacherDesk
    stop: Callable[[], str | None] = lambda: None
    allow_changed: bool = False
    steering: Steering | None = None
    entered: Callable[[str], object] = lambda stage: None

    def check_stop(self) -> None:
        """Raise Interrupted where a signal came: call it where all that was done is on disk."""
        signal = self.stop()
        if signal is not None:
            raise Interrupted(signal)

    @contextmanager
    def progress(
        self, unit: str, total: int | None, done: int = 0, before: Callable[[], object] = lambda: None
    ) -> Iterator[Callable[[int], None]]:
        """Say that the stage began; gives a function that counts items, and tells of them about once a second.

        `before` is called first each time: it may tell more.
        """
        self.log.emit(StageStarted(total=total or 0, unit=unit, done=done))
        told = time.monotonic()

        def advance(items: int) -> None:
            nonlocal done, told
            done += items
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                before()
                self.log.emit(Progress(done=done, total=total or 0, unit=unit))

        yield advance
        before()
        self.log.emit(Progress(done=done, total=total or done, unit=unit))


def in_bursts(advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance` for use in a running event loop: what comes at once is told as one.

    A teacher answers a batch at a time. Told of the first answer alone, a display would take the rate for far too low.
    """
    fresh, began = 0, 0.0

    def tell() -> None:
        nonlocal fresh
        items, fresh = fresh, 0
        if items:
            with suppress(LimbeckError):  # a full disk: what is written next tells of it
                advance(items)

    def add(items: int) -> None:
        nonlocal fresh, began
        if not fresh:
            asyncio.get_running_loop().call_soon(tell)  # it gets its turn when the teacher is waited for again
            began = time.monotonic()
        fresh += items
        if time.monotonic() - began >= PROGRESS_SECONDS:
            tell()  # a teacher that is never waited for

    return add


class Stage(Protocol):
    """One stage. `outputs` are its folders in the run's, `work` what it needs only while it works (checkpoints).

    `after`: the stages whose output it reads. `inputs` is JSON and holds contents, never paths: output is good exactly
    as long as these, `version` and the digests of the stages in `after` stay the same. `run` may find its own
    unfinished output, and goes on from there.
    """

    name: str
    version: int
    outputs: tuple[str, ...]
    work: tuple[str, ...]
    after: tuple[str, ...]

    def inputs(self, contents: Contents) -> Mapping[str, Any]: ...

    def run(self, run: Run) -> Figures: ...


@runtime_checkable
class Sealed(Protocol):
    """A stage whose output can be tested for damage, and whose `run` makes again only what is damaged.

    `whole` reads all of it, writes nothing, and needs nothing heavy.
    """

    def whole(self, folder: Path) -> bool: ...


class Record:
    """stages/NAME.json: what a stage's output was made from, and whether it is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / "stages" / f"{name}.json"
        self.content: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    @property
    def digest(self) -> str | None:
        """Digest of what the output was made from, None where there is none."""
        return self.content.get("digest")

    @property
    def complete(self) -> bool:
        """Whether the stage ended well."""
        return bool(self.content.get("complete"))

    @property
    def figures(self) -> Figures:
        """Figures of the stage."""
        return dict(self.content.get("figures", {}))

    @property
    def after(self) -> dict[str, str]:
        """Digests of the stages that it read."""
        return dict(self.content.get("inputs", {}).get("after", {}))

    @property
    def stamps(self) -> dict[str, list[int]]:
        """What :func:`stamps` said of the output when it was last known to be whole; only of a Sealed stage."""
        return dict(self.content.get("stamps", {}))

    def write(
        self,
        key: str,
        inputs: Mapping[str, Any],
        *,
        figures: Figures | None = None,
        stamps: Mapping[str, list[int]] | None = None,
    ) -> None:
        """Say that the output is being made, or, with `figures`, that it is whole."""
        self.content = {"digest": key, "complete": figures is not None, "figures": figures or {}, "inputs": inputs}
        if stamps is not None:
            self.content["stamps"] = stamps
        write_json(self.file, self.content)


def stamps(folder: Path, stage: Stage) -> dict[str, list[int]]:
    """Size and time of change (ns) of each file of a stage's output: cheap, and other where a file was written."""
    files = sorted(file for output in stage.outputs for file in (folder / output).rglob("*") if file.is_file())
    found = ((file.relative_to(folder).as_posix(), file.stat()) for file in files)
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found}


@dataclass(frozen=True)
class Step:
    """A stage of a run, with the digest of what it is to be made from and what is there already."""

    stage: Stage
    key: str
    inputs: Mapping[str, Any] = field(repr=False)
    record: Record = field(repr=False)
    there: tuple[str, ...]
    done: bool


def plan(folder: Path, stages: Sequence[Stage], contents: Contents) -> list[Step]:
    """What there is to do in `folder`. Reads only, and imports nothing heavy.

    The output of a Sealed stage is read as a whole where it is the last one or a later one is to read it, and where
    the size or the time of change of a file is another.
    """
    keys: dict[str, str] = {}
    steps: list[Step] = []
    for stage in stages:
        after = {name: keys[name] for name in stage.after if name in keys}
        inputs = {"stage": stage.name, "version": stage.version, "after": after, **stage.inputs(contents)}
        key = keys[stage.name] = digest(inputs)
        record = Record(folder, stage.name)
        there = tuple(name for name in (*stage.outputs, *stage.work) if (folder / name).exists())
        done = record.complete and record.digest == key and set(stage.outputs) <= set(there)
        steps.append(Step(stage, key, inputs, record, there, done))
    for number, step in enumerate(steps):
        if step.done and isinstance(step.stage, Sealed):
            last = number == len(steps) - 1  # it is what was asked for
            is_read = last or any(not later.done and step.stage.name in later.stage.after for later in steps)
            if (is_read or stamps(folder, step.stage) != step.record.stamps) and not step.stage.whole(folder):
                steps[number] = replace(step, done=False)
    return steps


def execute(run: Run, steps: Sequence[Step]) -> None:
    """Run the stages in order, each only where its output is not there already."""
    for step in steps:
        run.check_stop()
        run.log.begin_stage(step.stage.name)
        run.entered(step.stage.name)
        sealed = isinstance(step.stage, Sealed)
        if step.done:
            if sealed and (found := stamps(run.path, step.stage)) != step.record.stamps:
                step.record.write(step.key, step.inputs, figures=step.record.figures, stamps=found)
            run.log.emit(StageFinished(digest=step.key, skipped=True, figures=step.record.figures))
            continue
        if step.there and step.record.digest != step.key and not _goes_on(run, step):
            _set_aside(run, step)
        start = time.monotonic()
        step.record.write(step.key, step.inputs)
        figures = step.stage.run(run)
        seen = stamps(run.path, step.stage) if sealed else None
        step.record.write(step.key, step.inputs, figures=figures, stamps=seen)
        seconds = time.monotonic() - start
        run.log.emit(StageFinished(digest=step.key, seconds=seconds, figures=figures))
    run.log.begin_stage("")


def _goes_on(run: Run, step: Step) -> bool:
    """Whether unfinished training goes on under a changed recipe: only where that was allowed, on the same rows."""
    unfinished = bool(step.stage.work) and not step.record.complete
    return run.allow_changed and unfinished and step.record.after == step.inputs["after"]


def _set_aside(run: Run, step: Step) -> None:
    """Move the output of other inputs to former/, so that nothing is lost; a second call finishes a first one."""
    names = (*step.stage.outputs, *step.stage.work)
    name = f"{step.stage.name}-{(step.record.digest or 'unknown')[:8]}"
    target = run.path / "former" / name
    count = 1
    while any((target / output).exists() and (run.path / output).exists() for output in names):
        count += 1
        target = run.path / "former" / f"{name}-{count}"
    for output in names:
        if (run.path / output).exists():
            (target / output).parent.mkdir(parents=True, exist_ok=True)
            (run.path / output).rename(target / output)
    if step.record.content:
        write_json(target / "stage.json", step.record.content)
    changed = differences(step.record.content.get("inputs", {}), step.inputs)
    shown = [f"{name}: was {old[:NAMED]}, is {new[:NAMED]}" for name, old, new in changed[:NAMED_FIELDS]]
    more = [f"{len(changed) - NAMED_FIELDS} more"] if len(changed) > NAMED_FIELDS else []
    what = "; ".join([*shown, *more]) or "its record is gone"
    message = f"what the stage reads has changed ({what}); its former output was kept in {target.relative_to(run.path)}"
    run.log.warn("STAGE_OUTDATED", message)
