"""What a stage is made from is told by contents, never by paths; what differs between recipes is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.interfaces import Config, MadePath
from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.changes import differences
from limbeck.runs.contents import Contents
from limbeck.runs.pipeline import stages_of
from limbeck.runs.stage import plan

RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl}
losses: [{plugin: forward_kl}]
output: run
"""


@pytest.fixture
def project(tmp_path: Path, tiny_teacher: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(tiny_teacher, folder / "teacher")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def keys(project: Path) -> dict[str, str]:
    recipe = load_recipe(project / "recipe.yaml", load_plugins())
    return {s.stage.name: s.key for s in plan(recipe.output, stages_of(recipe), Contents(recipe))}


def test_a_project_that_moved_has_the_same_digests(project: Path) -> None:
    before = keys(project)
    assert list(before) == ["prepare", "label", "train", "evaluate", "report"]
    assert keys(project.rename(project.parent / "elsewhere")) == before


def _weights(project: Path) -> None:
    path = project / "teacher" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _write(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda project: (project / name).write_text(change((project / name).read_text())) and None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (_weights, "label"),
        (_write("rows.jsonl", lambda text: text + '{"prompt": "c", "completion": "d"}\n'), "prepare"),
        (_write("teacher/tokenizer_config.json", lambda text: text.replace("<start_of_turn>", "<bos>")), "prepare"),
        (_write("recipe.yaml", lambda text: text.replace("forward_kl", "reverse_kl")), "train"),
        (_write("recipe.yaml", lambda text: text.replace("forward_kl", "forward_kl, temperature: 2")), "label"),
        (_write("recipe.yaml", lambda text: text + "training: {save_steps: 7}\n"), "report"),
        (_write("recipe.yaml", lambda text: text + "training: {learning_rate: 0.1}\n"), "train"),
        (_write("recipe.yaml", lambda text: text + "evaluation: {samples: 1}\n"), "evaluate"),
    ],
    ids=["weights", "rows", "template", "loss", "temperature", "save_steps", "learning_rate", "samples"],
)
def test_a_change_reaches_the_stages_that_read_it_and_no_others(
    project: Path, change: Callable[[Path], None], first: str
) -> None:
    before = keys(project)
    change(project)
    after = keys(project)
    names = list(before)
    changed = [name for name in names if before[name] != after[name]]
    assert changed == names[names.index(first) :]


def test_differences_are_named_as_a_recipe_names_them() -> None:
    before = {"losses": [{"plugin": "forward_kl", "weight": 1.0}], "training": {"bf16": False}, "a": 1}
    now = {"losses": [{"plugin": "forward_kl", "weight": 0.5}, {"plugin": "jsd"}], "training": {"bf16": False}}
    assert differences(before, now) == [
        ("losses[0].weight", "1.0", "0.5"),
        ("losses[1]", "(not there)", "{'plugin': 'jsd'}"),
        ("a", "1", "(not there)"),
    ]
    assert differences(before, before) == []


class Makes(Config):
    """A plugin's config that names a folder of its own."""

    cache: MadePath | None = None
    size: int = 1


def test_a_folder_that_a_plugin_makes_is_no_input(project: Path) -> None:
    contents = Contents(load_recipe(project / "recipe.yaml", load_plugins()))
    assert contents.config(Makes(cache=str(project / "made"))) == {"size": 1}
