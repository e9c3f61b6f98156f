from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher}
data: {path: rows.jsonl}
losses: [{plugin: forward_kl}]
output: out
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def noisy_site(tmp_path: Path, data: Path) -> Path:
    """A folder for sys.path with the plugin of case C48, which prints and warns when it is imported."""
    site = tmp_path / "site"
    info = site / "noisy_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(data / "C48" / "noisy_plugin.py", site)
    with (site / "noisy_plugin.py").open("a") as file:
        file.write("import os\nos.write(1, b'noise on descriptor 1\\n')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck.plugins]\nnoisy = noisy_plugin\n")
    return site


@pytest.fixture
def limbeck(tmp_path: Path) -> Callable[..., Done]:
    """Run a command line in a process of its own, its stdout a pipe; `site` goes on sys.path."""

    def call(*args: str | Path, site: Path | None = None, **environment: str) -> Done:
        path = {"PYTHONPATH": str(site)} if site else {}
        done = subprocess.run(
            [sys.executable, "-m", "limbeck.cli.main", *map(str, args)],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **path, **environment},
            timeout=120,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call
