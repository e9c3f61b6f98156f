"""C51 and its class: what a relative path means never depends on where one stands."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from limbeck.recipe import load_recipe
from limbeck.recipe.paths import absolute


@pytest.fixture
def project(tmp_path: Path, data: Path) -> Path:
    """A copy of the case, under a path without links."""
    folder = tmp_path.resolve() / "project"
    shutil.copytree(data / "C51" / "project", folder)
    return folder


def test_paths_are_relative_to_the_recipe_wherever_one_stands(project, registry, monkeypatch):
    for place in (Path("/"), project, project / "recipes"):
        monkeypatch.chdir(place)
        recipe = load_recipe(Path(os.path.relpath(project / "recipes" / "recipe.yaml")), registry)
        assert recipe.data.path == str(project / "data" / "rows.jsonl")
        assert recipe.output == project / "recipes" / "OUT"
        assert recipe.path == project / "recipes" / "recipe.yaml"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_through_a_link_they_mean_the_same(project, registry, tmp_path, kind):
    link = tmp_path / "elsewhere" / "deep"
    link.parent.mkdir()
    if kind == "file":
        link.symlink_to(project / "recipes" / "recipe.yaml")
    else:
        link.symlink_to(project / "recipes")
        link = link / "recipe.yaml"
    recipe = load_recipe(link, registry)
    assert recipe.data.path == str(project / "data" / "rows.jsonl")
    assert recipe.output == project / "recipes" / "OUT"
    assert recipe.path == project / "recipes" / "recipe.yaml"


def test_a_moved_project_means_its_new_place(project, registry):
    moved = project.rename(project.with_name("moved"))
    assert load_recipe(moved / "recipes" / "recipe.yaml", registry).data.path == str(moved / "data" / "rows.jsonl")


def test_a_missing_file_is_told_as_written_and_as_resolved(project, registry):
    (project / "data" / "rows.jsonl").unlink()
    recipe = load_recipe(project / "recipes" / "recipe.yaml", registry)
    (problem,) = recipe.missing_paths()
    assert problem.message == f"'../data/rows.jsonl' is not there; it means {project}/data/rows.jsonl"
    assert (problem.line, problem.column, problem.field) == (3, 14, "data.path")


def test_every_path_of_every_part_is_resolved_and_asked_for(load, tmp_path):
    recipe = load(
        """\
        teacher: {plugin: transformers, model: ./models/big}
        student: {config: shapes/small, tokenizer: some/hub-id}
        data: {path: [a.jsonl, b/../c.jsonl, /abs/d.jsonl, a.jsonl], chat_template: t.jinja}
        losses: [{plugin: forward_kl}]
        output: out
        """
    )
    here = tmp_path.resolve()
    assert recipe.teacher.config.model == str(here / "models/big")
    assert recipe.student.config == str(here / "shapes/small")
    assert recipe.student.tokenizer == "some/hub-id"
    assert recipe.data.path == [str(here / "a.jsonl"), str(here / "c.jsonl"), "/abs/d.jsonl", str(here / "a.jsonl")]
    assert [(problem.field, problem.line) for problem in recipe.missing_paths()] == [
        ("student.config", 2),
        ("data.path[0]", 3),
        ("data.path[1]", 3),
        ("data.path[2]", 3),
        ("data.path[3]", 3),
        ("data.chat_template", 3),
        ("teacher.model", 1),
    ]
    (here / "a.jsonl").touch()
    assert len(recipe.missing_paths()) == 5


def test_a_model_is_a_folder_where_one_exists_else_a_hub_id(load, text, tmp_path):
    assert load(text(student="{model: small}")).student.model == "small"
    (tmp_path / "small").mkdir()
    assert load(text(student="{model: small}")).student.model == str(tmp_path.resolve() / "small")
    for path_only in ("models/a/b", "./small", "../x", "/y", "a b"):
        assert Path(load(text(student=f"{{model: '{path_only}'}}")).student.model).is_absolute()


def test_a_home_folder_and_links_are_followed_as_the_system_does(tmp_path, monkeypatch):
    here = tmp_path.resolve()
    monkeypatch.setenv("HOME", str(here))
    assert absolute(here / "x", "~/rows.jsonl") == here / "rows.jsonl"
    (here / "far" / "inner").mkdir(parents=True)
    (here / "near").symlink_to(here / "far" / "inner")
    assert absolute(here, "near/../rows.jsonl") == here / "far" / "rows.jsonl"
    assert absolute(here, "near") == here / "near"  # a last link stays: the name that was written is the one shown
    assert absolute(here / "far", "..") == here


def test_what_a_reader_would_wait_for_or_not_find_as_written_is_told(load, text, tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    (problem,) = load(text()).missing_paths()
    assert "'rows.jsonl' is neither a file nor a folder" in problem.message
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").write_text("{}")
    (problem,) = load(text().replace("rows.jsonl", "rows.jsonl/")).missing_paths()
    assert "'rows.jsonl/' is not a folder" in problem.message


def test_a_link_that_leads_nowhere_is_told_as_such(load, text, tmp_path):
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (problem,) = load(text()).missing_paths()
    assert "a link that leads nowhere" in problem.message
