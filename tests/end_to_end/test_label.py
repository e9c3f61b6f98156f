"""`limbeck label`: the signals alone; `run` goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from limbeck.signals import SignalStore

from .conftest import Limbeck, events_of, kinds

Inside = Callable[..., tuple[int, str, str]]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, kill_points: ModuleType, limbeck: Limbeck) -> Path:
    """A project whose signals were captured by the real program; do not change it."""
    project = tmp_path_factory.mktemp("labelled")
    done = limbeck("label", kill_points.make_project(project), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["result"]
    assert (Path(result["train"]), Path(result["holdout"])) == (
        project / "run" / "signals" / "train",
        project / "run" / "signals" / "holdout",
    )
    assert result["train_sequences"] > result["holdout_sequences"] > 0
    return project


def test_label_captures_what_a_run_would_and_trains_nothing(labelled: Path, finished: Path) -> None:
    assert _files(labelled / "run" / "signals") == _files(finished / "run" / "signals")
    assert not (labelled / "run" / "student").exists()
    assert not (labelled / "run" / "checkpoints").exists()


def test_a_run_goes_on_from_the_signals(labelled: Path, finished: Path, tmp_path: Path, inside: Inside) -> None:
    project = Path(shutil.copytree(labelled, tmp_path / "project"))
    code, _, err = inside("run", project / "recipe.yaml")
    assert code == 0, err
    events = events_of(project / "run")
    again = [event for event in events if event.get("stage") == "label" and event["attempt"] == 2]
    assert [event["stage_finished"]["skipped"] for event in again if "stage_finished" in event] == [True]
    assert "stage_started" not in {key for event in again for key in event}
    assert kinds(events, "train")
    assert (project / "run" / "student" / "model.safetensors").read_bytes() == (
        finished / "run" / "student" / "model.safetensors"
    ).read_bytes()


def test_a_second_label_scores_nothing(labelled: Path, tmp_path: Path, inside: Inside) -> None:
    project = Path(shutil.copytree(labelled, tmp_path / "project"))
    before = _files(project / "run" / "signals")
    code, out, err = inside("label", project / "recipe.yaml")
    assert code == 0, err
    count = len(SignalStore(project / "run" / "signals" / "train").indexes)
    assert f"train    {project / 'run' / 'signals' / 'train'}, {count} sequences" in out
    assert _files(project / "run" / "signals") == before


def test_a_recipe_whose_training_reads_no_stored_signal_is_told_so(
    labelled: Path, tmp_path: Path, inside: Inside
) -> None:
    project = Path(shutil.copytree(labelled, tmp_path / "project"))
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("output: run", "output: online") + "signals: {source: online}\n")
    code, out, err = inside("label", recipe)
    assert code == 0, err
    assert "train    nothing: signals.source is online" in out
    assert not (project / "online" / "signals" / "train").exists()


def test_a_recipe_without_a_teacher_has_nothing_to_label(tmp_path: Path, finished: Path, inside: Inside) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"student: {{model: {finished / 'run' / 'student'}}}\ndata: {{path: rows.jsonl}}\n"
        "losses: [{plugin: cross_entropy}]\noutput: run\n"
    )
    code, _, err = inside("label", recipe)
    assert code == 2
    assert "CAPABILITY_MISSING" in err or "no stage label" in err
    assert "add teacher:" in err
    assert not (tmp_path / "run").exists()
