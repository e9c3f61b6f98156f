"""docs/api-distillation.md and examples/api: the commands run, with a teacher that costs nothing in the API's place."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe

from .conftest import ROOT

Inside = Callable[..., tuple[int, str, str]]
GUIDE = (ROOT / "docs" / "api-distillation.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "api" / "recipe.yaml"


def commands() -> list[list[str]]:
    """The command lines of limbeck that the guide shows, in order."""
    shown = [line for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in shown if line.startswith("limbeck ")]


def test_the_commands_of_the_guide_run(tmp_path: Path, tiny_student: Path, inside: Inside) -> None:
    own = tmp_path / "examples" / "api" / "recipe.yaml"
    own.parent.mkdir(parents=True)
    text = EXAMPLE.read_text("utf-8")
    teacher = re.search(r"^teacher:\n(?:  .*\n)+", text, re.M)
    assert teacher is not None
    text = text.replace(teacher[0], "teacher: {plugin: echo-text, price: [0.15, 0.6]}\n")
    own.write_text(text.replace("../demo/.cache/gemma-3-270m", str(tiny_student)))
    (tmp_path / "examples" / "demo").mkdir()
    shutil.copy(ROOT / "examples" / "demo" / "prompts_short.jsonl", tmp_path / "examples" / "demo" / "prompts.jsonl")
    said = {}
    for line in commands():
        args = [str(own) if argument.endswith("recipe.yaml") else argument for argument in line]
        args = ["echo-text" if argument == "openai" else argument for argument in args]
        code, out, err = inside(*args)
        assert code == 0, err
        said[line[0]] = out
    assert list(said) == ["plugins", "check", "run", "resume"]
    assert "cost_at_most" in said["check"]
    assert "The teacher: 12 calls" in said["run"]
    assert "generate: there already" in said["resume"]


def test_the_example_is_valid_with_the_plugin_that_it_names(tmp_path: Path, tiny_student: Path) -> None:
    pytest.importorskip("limbeck_openai")
    text = EXAMPLE.read_text("utf-8").replace("../demo/.cache/gemma-3-270m", str(tiny_student))
    text = re.sub(r"^  # (\w+: (?:\{.*\}|\w+)) #.*$", r"  \1", text, flags=re.M)  # with what is commented out
    text = text.replace("budget: {money: 2.00}", "budget: {money: 2.00}\n  cache: answers")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("../demo", str(ROOT / "examples" / "demo")))
    (tmp_path / "answers").mkdir()
    teacher = load_recipe(recipe, load_plugins()).teacher
    assert teacher is not None
    assert teacher.name == "openai"
    assert (teacher.config.key_env, teacher.config.price.output, teacher.config.budget.money) == (
        "MY_API_KEY",
        0.6,
        2.0,
    )


def test_recipes_shown_are_parts_of_valid_ones(tmp_path: Path, tiny_student: Path) -> None:
    pytest.importorskip("limbeck_openai")
    whole, rationale = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.M | re.S)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    text = whole.replace("../demo/.cache/gemma-3-270m", str(tiny_student)).replace("../demo/", "")
    text = text.replace("data:\n", rationale)
    (tmp_path / "recipe.yaml").write_text(f"{text}output: out\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", load_plugins())
    assert recipe.data.rationale is not None
    assert recipe.data.rationale.weight == 0.3
