from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.plugins import Registry, load_plugins
from limbeck.recipe import Recipe, load_recipe

PARTS = {
    "teacher": "{plugin: transformers, model: some/teacher}",
    "student": "{model: some/student}",
    "data": "{path: rows.jsonl}",
    "losses": "[{plugin: forward_kl}]",
    "output": "out",
}


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_plugins()


@pytest.fixture
def text() -> Callable[..., str]:
    """The text of a small valid recipe with some parts changed; None leaves one out."""

    def call(**changes: str | None) -> str:
        parts = {**PARTS, **changes}
        return "".join(f"{name}: {value}\n" for name, value in parts.items() if value is not None)

    return call


@pytest.fixture
def load(tmp_path: Path, registry: Registry) -> Callable[[str], Recipe]:
    """Load a recipe from its text."""

    def call(text: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(textwrap.dedent(text))
        return load_recipe(path, registry)

    return call


@pytest.fixture
def problems(load: Callable[[str], Recipe], tmp_path: Path) -> Callable[[str], list[Problem]]:
    """The problems of an invalid recipe, each with a place. The files that tests name are there."""

    def call(text: str) -> list[Problem]:
        for name in ("rows.jsonl", "a", "b"):
            (tmp_path / name).touch()
        with pytest.raises(LimbeckError) as caught:
            load(text)
        assert caught.value.reason is Reason.RECIPE_INVALID
        assert all(problem.file and problem.line and problem.column for problem in caught.value.problems)
        return list(caught.value.problems)

    return call
