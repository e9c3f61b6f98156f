"""The run's folder: whose it is, who writes, what is recorded."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.recipe.resolved import dump_yaml, load_yaml
from limbeck.runs.folder import RunFolder, find_recipe, read_identity


def test_a_new_folder_gets_an_identity_and_keeps_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "run") as first:
        assert first.is_new
        run_id = first.run_id
    with RunFolder(tmp_path / "a" / "run") as second:
        assert not second.is_new
        assert second.run_id == run_id
    assert json.loads((tmp_path / "a" / "run" / "run.json").read_text())["limbeck_version"]


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"run.json": '{"loss": 3}'}, {"run.json": "[]"}])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path)
    assert caught.value.reason is Reason.FOLDER_NOT_OURS
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(LimbeckError, match="not a folder"):
        RunFolder(tmp_path / "run")


def test_a_start_that_was_killed_at_once_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".run.json.partial").write_text("{")
    with RunFolder(tmp_path) as folder:
        assert folder.is_new


def _hold(path: str, held: object, let_go: object) -> None:
    with RunFolder(Path(path)):
        held.set()  # type: ignore[attr-defined]
        let_go.wait(30)  # type: ignore[attr-defined]


def test_one_writer_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, let_go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), held, let_go))
    process.start()
    assert held.wait(30)
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path)
    assert caught.value.reason is Reason.RUN_LOCKED
    assert str(process.pid) in str(caught.value)
    process.kill()
    process.join()
    RunFolder(tmp_path).close()


def test_the_recipe_is_found_where_it_lay_and_after_all_moved_together(tmp_path: Path) -> None:
    project = tmp_path / "project"
    recipe = project / "recipes" / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("output: ../runs/a\n")
    with RunFolder(project / "runs" / "a") as folder:
        folder.record(recipe, recipe.read_text(), {"training": {"learning_rate": 1e-4}})
    assert find_recipe(project / "runs" / "a") == recipe
    moved = project.rename(tmp_path / "moved")
    assert find_recipe(moved / "runs" / "a") == moved / "recipes" / "recipe.yaml"
    (moved / "recipes" / "recipe.yaml").unlink()
    with pytest.raises(LimbeckError) as caught:
        find_recipe(moved / "runs" / "a")
    assert caught.value.reason is Reason.RESUME_REFUSED
    assert str(moved / "recipes" / "recipe.yaml") in str(caught.value)
    assert str(recipe) in str(caught.value)


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="no run here"):
        find_recipe(tmp_path)
    assert read_identity(tmp_path) is None


def test_resolved_yaml_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"b": 1e-4, "a": ["1e-4", "no", "null", "", None, True, 3, 2.5e17], "text": "ü\nx: y", "long": "w " * 200}
    assert load_yaml(dump_yaml(value)) == value
    assert list(load_yaml(dump_yaml(value))) == list(value)
