"""Damaged signals of a finished label stage: found when the run is called again, and only they are scored again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck import files
from limbeck.runs import label

from .conftest import events_of
from .test_resume import _unfinished

Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "ASK_TOKENS", 128)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, kill_points: ModuleType) -> Path:
    """The project of a finished run with several shards; do not change it."""
    from limbeck.cli.main import run

    project = tmp_path_factory.mktemp("labelled")
    recipe: Path = kill_points.make_project(project)
    recipe.write_text(recipe.read_text().replace("twin: true", "twin: false"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "ASK_TOKENS", 128)
        assert run(["run", str(recipe)]) == 0
    return project


@pytest.fixture
def project(labelled: Path, tmp_path: Path, many_shards: None) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "copied"))


def shards(project: Path) -> dict[str, bytes]:
    folder = project / "run" / "signals"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/shard-*.arrow")}


def flip(path: Path, *, quietly: bool = False) -> None:
    """Change one bit; `quietly`: as a disk does that loses one, the time of change stays."""
    stat = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    if quietly:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        files._file_digests.clear()  # another process remembers nothing of this one


def said(project: Path, stage: str) -> list[dict[str, Any]]:
    """What a stage said in the last attempt."""
    events = events_of(project / "run")
    return [e for e in events if e["attempt"] == events[-1]["attempt"] and e.get("stage") == stage]


def test_of_a_finished_run_only_the_damaged_shard_is_scored_again(
    project: Path, labelled: Path, inside: Inside
) -> None:
    folder = project / "run" / "signals" / "train"
    broken, *others = sorted(folder.glob("shard-*.arrow"))[1:]
    assert others
    times = {path: path.stat().st_mtime_ns for path in others}
    flip(broken)
    code, out, err = inside("run", project / "recipe.yaml")
    assert code == 0, err
    assert f"{broken.name}: the checksum differs" in out
    assert shards(project) == shards(labelled)
    assert {path: path.stat().st_mtime_ns for path in others} == times
    (started,) = [e["stage_started"] for e in said(project, "label") if "stage_started" in e]
    assert 0 < int(started["total"]) - int(started["done"]) < int(started["total"]) / 2
    assert [e["stage_finished"]["skipped"] for e in said(project, "train") if "stage_finished" in e] == [True]
    code, out, err = inside("run", project / "recipe.yaml")
    assert code == 0, err
    assert "label: there already" in out


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_bit_that_a_disk_lost_is_found_before_a_stage_reads_the_signals(
    stage: str, project: Path, labelled: Path, inside: Inside
) -> None:
    split = "train" if stage == "train" else "holdout"
    broken = sorted((project / "run" / "signals" / split).glob("shard-*.arrow"))[0]
    flip(broken, quietly=True)
    _unfinished(project / "run", stage)
    code, out, err = inside("run", project / "recipe.yaml")
    assert code == 0, err
    assert "STORE_MENDED" in out
    assert shards(project) == shards(labelled)
    student = Path("run", "student", "model.safetensors")
    assert (project / student).read_bytes() == (labelled / student).read_bytes()


@pytest.mark.parametrize("lost", ["journal.jsonl", "shards", "everything", "header.json"])
def test_signals_that_are_gone_are_there_again(lost: str, project: Path, labelled: Path, inside: Inside) -> None:
    folder = project / "run" / "signals" / "holdout"
    if lost == "everything":
        shutil.rmtree(folder)
    for path in folder.glob("shard-*.arrow" if lost == "shards" else lost):
        path.unlink()
    code, _, err = inside("run", project / "recipe.yaml")
    assert code == 0, err
    assert shards(project) == shards(labelled)


def test_a_copy_whose_times_are_new_is_read_once_and_then_believed(
    project: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (project / "run" / "signals").rglob("*.arrow"):
        os.utime(path)
    read: list[Path] = []
    whole = label.Label.whole
    monkeypatch.setattr(label.Label, "whole", lambda self, folder: (read.append(folder), whole(self, folder))[1])
    for times in (2, 0):  # the plan is made twice: before the lock, and behind it
        code, out, err = inside("run", project / "recipe.yaml")
        assert code == 0, err
        assert "label: there already" in out
        assert len(read) == times
        read.clear()
