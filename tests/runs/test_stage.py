"""The stage mechanism: what runs again, what is set aside, where a stop lands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.runs.desk import TeacherDesk
from limbeck.runs.events import EventLog, read_events
from limbeck.runs.stage import Figures, Interrupted, Record, Run, execute, in_bursts, plan


class Toy:
    """Writes its value into NAME/value.txt."""

    version = 1

    def __init__(self, name: str, value: str, after: tuple[str, ...] = (), *, fails: bool = False) -> None:
        self.name, self.value, self.after, self.fails = name, value, after, fails
        self.outputs: tuple[str, ...] = (name,)
        self.work: tuple[str, ...] = (f"work/{name}",)

    def inputs(self, contents: Any) -> Mapping[str, Any]:
        return {"value": self.value}

    def run(self, run: Run) -> Figures:
        (run.path / self.work[0]).mkdir(parents=True, exist_ok=True)
        (run.path / self.work[0] / "part.txt").write_text(self.value)
        if self.fails:
            raise RuntimeError("killed")
        (run.path / self.name).mkdir(exist_ok=True)
        (run.path / self.name / "value.txt").write_text(self.value)
        return {"size": float(len(self.value))}


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Run]:
    recipe: Any = SimpleNamespace(teacher=None)
    with EventLog(folder / "events.jsonl", "run") as log:
        yield Run(recipe, None, folder, log, TeacherDesk(recipe), **options)  # type: ignore[arg-type]


def work(folder: Path, *stages: Toy, **options: Any) -> list[str]:
    """Names of the stages that were run."""
    with opened(folder, **options) as run:
        start = run.log.sequence
        execute(run, plan(folder, stages, run.contents))
    said = [event for event in read_events(folder / "events.jsonl") if event.sequence > start]
    return [e.stage for e in said if e.HasField("stage_finished") and not e.stage_finished.skipped]


def test_a_stage_runs_again_only_where_what_it_reads_has_changed(tmp_path: Path) -> None:
    assert work(tmp_path, Toy("a", "1"), Toy("b", "1", ("a",)), Toy("c", "1")) == ["a", "b", "c"]
    assert work(tmp_path, Toy("a", "1"), Toy("b", "1", ("a",)), Toy("c", "1")) == []
    assert work(tmp_path, Toy("a", "2"), Toy("b", "1", ("a",)), Toy("c", "1")) == ["a", "b"]
    assert Record(tmp_path, "a").figures == {"size": 1.0}


def test_output_that_is_gone_is_made_again_and_work_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    import shutil

    work(tmp_path, Toy("a", "1"))
    shutil.rmtree(tmp_path / "work")
    assert work(tmp_path, Toy("a", "1")) == []
    shutil.rmtree(tmp_path / "a")
    assert work(tmp_path, Toy("a", "1")) == ["a"]


def test_former_output_is_kept_aside_and_said(tmp_path: Path) -> None:
    for value in ("1", "2", "1", "2"):
        work(tmp_path, Toy("a", value))
    kept = sorted((tmp_path / "former").glob("*/a/value.txt"))
    assert sorted(path.read_text() for path in kept) == ["1", "1", "2"]
    assert len(list((tmp_path / "former").glob("*/work/a/part.txt"))) == 3
    warnings = [e.warning for e in read_events(tmp_path / "events.jsonl") if e.HasField("warning")]
    assert [warning.reason for warning in warnings] == ["STAGE_OUTDATED"] * 3
    assert "former/a-" in warnings[0].message


def test_an_unfinished_stage_finds_its_own_work_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        work(tmp_path, Toy("a", "1", fails=True))
    assert not Record(tmp_path, "a").complete
    assert work(tmp_path, Toy("a", "1")) == ["a"]
    assert not (tmp_path / "former").exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_unfinished_training_of_another_recipe_goes_on_only_where_that_is_allowed(
    tmp_path: Path, allowed: bool
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        work(tmp_path, Toy("a", "1", fails=True))
    assert work(tmp_path, Toy("a", "2"), allow_changed=allowed) == ["a"]
    assert (tmp_path / "former").exists() != allowed


def test_finished_training_of_another_recipe_is_made_anew_though_changes_are_allowed(tmp_path: Path) -> None:
    """Else its card and report would tell of numbers that it was not trained with."""
    work(tmp_path, Toy("a", "1"))
    assert work(tmp_path, Toy("a", "2"), allow_changed=True) == ["a"]
    assert list((tmp_path / "former").iterdir())


def test_a_stop_lands_between_stages(tmp_path: Path) -> None:
    said = iter([None, "SIGTERM"])
    with opened(tmp_path, stop=lambda: next(said)) as run, pytest.raises(Interrupted) as caught:
        execute(run, plan(tmp_path, [Toy("a", "1"), Toy("b", "1")], run.contents))
    assert caught.value.signal == "SIGTERM"
    assert Record(tmp_path, "a").complete
    assert Record(tmp_path, "b").digest is None


def test_progress_counts_from_what_was_done_before(tmp_path: Path) -> None:
    with opened(tmp_path) as run, run.progress("rows", 10, 4) as advance:
        advance(3)
        advance(3)
    events = list(read_events(tmp_path / "events.jsonl"))
    assert (events[0].stage_started.done, events[0].stage_started.total) == (4, 10)
    assert (events[-1].progress.done, events[-1].progress.unit) == (10, "rows")


class SealedToy(Toy):
    """Knows its value."""

    checks = 0

    def whole(self, folder: Path) -> bool:
        type(self).checks += 1
        return (folder / self.name / "value.txt").read_text() == self.value


def test_sealed_output_is_looked_at_where_it_is_to_be_read_or_was_touched(tmp_path: Path) -> None:
    def stages(value: str = "1") -> list[Toy]:
        SealedToy.checks = 0
        return [SealedToy("a", "1"), Toy("b", value, ("a",)), Toy("c", "1")]

    def damage(text: str) -> None:
        before = file.stat()
        file.write_text(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    file = tmp_path / "a" / "value.txt"
    assert work(tmp_path, *stages()) == ["a", "b", "c"]
    assert work(tmp_path, *stages()) == []
    assert SealedToy.checks == 0
    damage("x")
    assert work(tmp_path, *stages("2")) == ["a", "b"]
    damage("x")
    assert work(tmp_path, SealedToy("a", "1")) == ["a"]
    damage("longer")
    assert work(tmp_path, *stages("2")) == ["a"]
    os.utime(file)
    assert work(tmp_path, *stages("2")) == []
    assert SealedToy.checks == 1
    assert work(tmp_path, *stages("2")) == []
    assert SealedToy.checks == 0
    assert Record(tmp_path, "a").figures == {"size": 1.0}


def test_what_comes_at_once_is_told_as_one() -> None:
    told: list[int] = []

    async def work() -> None:
        add = in_bursts(told.append)
        for batch in (64, 3):
            await asyncio.sleep(0)  # the teacher writes
            for _ in range(batch):
                add(1)
        add(2)

    asyncio.run(work())
    assert told == [64, 5]


def test_a_teacher_that_is_never_waited_for_is_told_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("limbeck.runs.stage.time", SimpleNamespace(monotonic=lambda: now[0]))
    told: list[int] = []

    async def work() -> None:
        add = in_bursts(told.append)
        for _ in range(10):
            add(1)
            now[0] += 0.3

    asyncio.run(work())
    assert sum(told) == 10
    assert len(told) > 1
