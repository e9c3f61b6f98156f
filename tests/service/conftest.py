from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.plugins import load_plugins
from limbeck.recipe import Bound
from limbeck.recipe.teacher import load_teacher

from .hosting import Diary


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Bound:
    """The teacher `echo` with the tokenizer tok_a."""
    file = tmp_path_factory.mktemp("teacher") / "echo.yaml"
    file.write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    return load_teacher(file, load_plugins())


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bound]]:
    """Makes the teacher `nursery` with a config; its diary is in tmp_path/diary, see `hosting.Diary`."""
    site = tmp_path / "site"
    info = site / "limbeck_nursery-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("nursery.py"), site / "limbeck_nursery.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: limbeck-nursery\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck.plugins]\nnursery = limbeck_nursery\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    def make(plugin: str = "nursery", **config: Any) -> Bound:
        entry = load_plugins().entry("teacher", plugin)
        return Bound(entry, entry.plugin.config.model_validate({"folder": str(tmp_path), **config}), "teacher")

    yield make
    sys.modules.pop("limbeck_nursery", None)
    importlib.invalidate_caches()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    """What the teacher `nursery` writes down."""
    return Diary(tmp_path)
