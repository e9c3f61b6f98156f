from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.plugins import load_plugins
from limbeck.recipe import Bound
from limbeck.recipe.teacher import load_teacher


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Bound:
    """The teacher `echo` with the tokenizer tok_a."""
    file = tmp_path_factory.mktemp("teacher") / "echo.yaml"
    file.write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    return load_teacher(file, load_plugins())
