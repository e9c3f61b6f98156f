"""Installed distributions for tests: a .dist-info folder and a module, found through sys.path as real ones are."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LOSS = """
from limbeck.hookspecs import hookimpl
from limbeck.interfaces import LossPlugin, Needs, TokenLossConfig

@hookimpl
def limbeck_losses():
    yield LossPlugin(
        name="{name}", kind="token", config=TokenLossConfig, needs=lambda config: Needs("top_k"),
        factory=lambda config, context: None, summary="A loss.",
    )
"""


@pytest.fixture
def loss() -> Callable[[str], str]:
    """The source of a module that offers one loss."""
    return lambda name: LOSS.format(name=name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path to install into; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def install(site: Path) -> Callable[..., Path]:
    """Write a distribution with one module into `site`, or into `folder`. Returns its .dist-info folder."""

    def call(
        name: str, source: str, *, version: str = "1.0", points: str | None = None, folder: Path | None = None
    ) -> Path:
        place = folder or site
        place.mkdir(parents=True, exist_ok=True)
        module = name.replace("-", "_")
        (place / f"{module}.py").write_text(textwrap.dedent(source))
        info = place / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        default = f"[limbeck.plugins]\n{name} = {module}\n"
        (info / "entry_points.txt").write_text(default if points is None else points)
        importlib.invalidate_caches()
        return info

    return call
