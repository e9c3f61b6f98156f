"""The stage mechanism: what a stage is, when it is run again, and where its former output goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from limbeck.files import digest, write_json
from limbeck.recipe import Recipe
from limbeck.runs.contents import Contents
from limbeck.runs.events import EventLog
from limbeck.runs.folder import RunFolder
from limbeck.v1.event_pb2 import Progress, StageFinished, StageStarted

PROGRESS_SECONDS = 1.0
Figures = dict[str, float]


class Interrupted(Exception):
    """A signal asked the run to stop, and it stopped where it can go on."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass
class Run:
    """What every stage is given: the recipe, digests of what it reads, the folder, the history, the stop signal."""

    recipe: Recipe
    contents: Contents
    folder: RunFolder
    log: EventLog
    stop: Callable[[], str | None] = lambda: None

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    def check_stop(self) -> None:
        """Raise Interrupted where a signal came: call it where all that was done is on disk."""
        signal = self.stop()
        if signal is not None:
            raise Interrupted(signal)

    @contextmanager
    def progress(self, unit: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Say that the stage began; gives a function that counts items, and tells of them about once a second."""
        self.log.emit(StageStarted(total=total or 0, unit=unit, done=done))
        told = time.monotonic()

        def advance(items: int) -> None:
            nonlocal done, told
            done += items
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self.log.emit(Progress(done=done, total=total or 0, unit=unit))

        yield advance
        self.log.emit(Progress(done=done, total=total or done, unit=unit))


class Stage(Protocol):
    """One stage. `outputs` are its folders in the run's; `after` the stages whose output it reads.

    `inputs` is JSON and holds contents, never paths: output is good exactly as long as these, `version` and the
    digests of the stages in `after` stay the same. `run` may find its own unfinished output, and goes on from there.
    """

    name: str
    version: int
    outputs: tuple[str, ...]
    after: tuple[str, ...]

    def inputs(self, run: Run) -> Mapping[str, Any]: ...

    def run(self, run: Run) -> Figures: ...


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

    def write(self, key: str, inputs: Mapping[str, Any], *, figures: Figures | None = None) -> None:
        """Say that the output is being made, or, with `figures`, that it is whole."""
        self.content = {
            "digest": key,
            "complete": figures is not None,
            "figures": figures or {},
            "inputs": inputs,
        }
        write_json(self.file, self.content)


def execute(run: Run, stages: Sequence[Stage]) -> None:
    """Run the stages in order, each only where its output is not there already."""
    digests: dict[str, str] = {}
    for stage in stages:
        run.check_stop()
        run.log.begin_stage(stage.name)
        before = {name: digests[name] for name in stage.after if name in digests}
        inputs = {"stage": stage.name, "version": stage.version, "after": before, **stage.inputs(run)}
        key = digests[stage.name] = digest(inputs)
        record = Record(run.path, stage.name)
        there = [name for name in stage.outputs if (run.path / name).exists()]
        if record.complete and record.digest == key and len(there) == len(stage.outputs):
            run.log.emit(StageFinished(digest=key, skipped=True, figures=record.figures))
            continue
        if there and record.digest != key:
            _set_aside(run, stage, record)
        start = time.monotonic()
        record.write(key, inputs)
        figures = stage.run(run)
        record.write(key, inputs, figures=figures)
        run.log.emit(StageFinished(digest=key, seconds=time.monotonic() - start, figures=figures))
    run.log.begin_stage("")


def _set_aside(run: Run, stage: Stage, record: Record) -> None:
    """Move the output of other inputs to former/, so that nothing is lost; a second call finishes a first one."""
    name = f"{stage.name}-{(record.digest or 'unknown')[:8]}"
    target = run.path / "former" / name
    count = 1
    while any((target / output).exists() and (run.path / output).exists() for output in stage.outputs):
        count += 1
        target = run.path / "former" / f"{name}-{count}"
    for output in stage.outputs:
        if (run.path / output).exists():
            (target / output).parent.mkdir(parents=True, exist_ok=True)
            (run.path / output).rename(target / output)
    if record.content:
        write_json(target / "stage.json", record.content)
    message = f"what the stage reads has changed; its former output was kept in {target.relative_to(run.path)}"
    run.log.warn("STAGE_OUTDATED", message)
