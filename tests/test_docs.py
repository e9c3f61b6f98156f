"""The guides against the code: nothing that exists is left out, nothing is shown that does not."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pluggy
import pytest
from pydantic_core import PydanticUndefined

from limbeck import errors, hookspecs
from limbeck.cli.main import COMMANDS, EXIT_SIGPIPE
from limbeck.errors import CATALOGUE, Reason
from limbeck.plugins import HOOKS, OBSERVER_HOOK, load_plugins
from limbeck.recipe import (
    DataSpec,
    EvaluationSpec,
    RationaleSpec,
    RecipeFile,
    SignalsSpec,
    StudentSpec,
    TrainingSpec,
    load_recipe,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SECTIONS = {
    "student": StudentSpec,
    "data": DataSpec,
    "data.rationale": RationaleSpec,
    "signals": SignalsSpec,
    "training": TrainingSpec,
    "evaluation": EvaluationSpec,
}


def table(guide: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading: its first cell, without the marks of code, to the others."""
    text = (DOCS / guide).read_text("utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}\n", text, flags=re.M)[1]
    rows: dict[str, list[str]] = {}
    for line in below.split("\n#")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and not line.startswith("|---"):
            rows[cells[0].strip("` ")] = cells[1:]
    return dict(list(rows.items())[1:])


# ------------------------------------------------------------------------------------------------- the error catalogue


def used(folder: Path) -> set[str]:
    """Names of reasons that code raises, the table itself left out."""
    return {
        name
        for path in folder.rglob("*.py")
        if path.name != "errors.py"
        for name in re.findall(r"Reason\.([A-Z_]+)", path.read_text("utf-8"))
    }


def test_the_catalogue_is_the_set_of_reasons_that_are_raised():
    assert set(CATALOGUE) == set(Reason)
    assert used(ROOT / "engine") | used(ROOT / "plugins") == {reason.name for reason in Reason}
    assert all(reason.name == reason.value for reason in Reason)


def test_plugins_of_this_repository_raise_reasons_of_the_catalogue():
    assert used(ROOT / "plugins") <= {reason.name for reason in Reason}


def test_the_guide_has_every_reason_with_its_code_and_text():
    expected = {str(reason): [str(spec.exit_code), spec.text] for reason, spec in CATALOGUE.items()}
    assert table("cli.md", "Reasons") == expected


def test_the_guide_has_every_exit_code():
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {EXIT_SIGPIPE}
    assert set(table("cli.md", "Exit codes")) == {str(int(code)) for code in codes}


# ---------------------------------------------------------------------------------------------------- commands, hooks


def test_the_guide_has_every_command():
    rows = table("cli.md", "The command line")
    assert {row.split()[1].strip("`") for row in rows} == set(COMMANDS)


def test_the_guide_has_every_hook():
    specified = {name for name, value in vars(hookspecs).items() if callable(value) and hasattr(value, "limbeck_spec")}
    assert specified == {*HOOKS, OBSERVER_HOOK}
    assert set(table("plugins.md", "Hooks")) == specified


@pytest.mark.parametrize("hook", [*HOOKS, OBSERVER_HOOK])
def test_every_hook_says_what_it_does_with_an_example(hook):
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    example = text.partition("Example::")[2]
    assert f"def {hook}(" in example
    module = inspect.cleandoc("\n" + example)
    names: dict[str, object] = {"hookimpl": pluggy.HookimplMarker("limbeck")}
    exec(compile(module, hook, "exec"), names)  # the example is Python with the hook's name and arguments
    signature = list(inspect.signature(names[hook]).parameters)
    assert signature == list(inspect.signature(getattr(hookspecs, hook)).parameters)


# -------------------------------------------------------------------------------------------------------- the recipe


def test_the_guide_has_every_section():
    assert set(table("recipe.md", "Fields")) == set(RecipeFile.model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_guide_has_every_field_with_its_default_and_meaning(section):
    expected = {}
    for name, field in SECTIONS[section].model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        shown = default if isinstance(default, str) else json.dumps(default)
        expected[field.alias or name] = ["" if default is None else f"`{shown}`", field.description]
    assert table("recipe.md", section) == expected


def test_the_guide_has_every_built_in_scheduler():
    schedulers = {
        entry.plugin.name
        for entry in load_plugins().entries
        if entry.kind == "scheduler" and entry.distribution == "limbeck"
    }
    named = {re.search(r"plugin: (\w+)", row)[1] for row in table("recipe.md", "Schedules")}
    assert named == schedulers


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_recipes_of_the_guides_are_valid(path, tmp_path):
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)):
        if "output:" in block:
            recipe = tmp_path / f"{number}.yaml"
            recipe.write_text(block)
            load_recipe(recipe, load_plugins())


def test_schedules_of_the_guide_are_valid(tmp_path):
    for row in table("recipe.md", "Schedules"):
        recipe = tmp_path / "recipe.yaml"
        loss = f"{{plugin: cross_entropy, weight: {row}}}"
        recipe.write_text(f"student: {{model: a/b}}\ndata: {{path: a}}\nlosses: [{loss}]\noutput: o\n")
        load_recipe(recipe, load_plugins())


def test_conformance_classes_of_the_guide_exist():
    shown = set(re.findall(r"\w+Conformance", (DOCS / "plugins.md").read_text("utf-8")))
    there = {
        name
        for path in (ROOT / "engine" / "limbeck" / "testing").glob("*.py")
        for name in re.findall(r"^class ([A-Z]\w+Conformance)\b", path.read_text("utf-8"), re.M)
    }
    assert shown == there
