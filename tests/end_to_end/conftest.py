from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
Limbeck = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def kill_points() -> ModuleType:
    """benchmarks/kill_points.py: the tiny project and the comparison of runs."""
    spec = importlib.util.spec_from_file_location("kill_points", ROOT / "benchmarks" / "kill_points.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment() -> dict[str, str]:
    """One thread, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*args: str | Path) -> list[str]:
    """A command line of the real program."""
    return [sys.executable, "-m", "limbeck.cli.main", *map(str, args)]


@pytest.fixture(scope="session")
def limbeck() -> Limbeck:
    """Run the real program in a process of its own, its stdout a pipe."""

    def call(*args: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*args),
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**environment(), **more},
            timeout=300,
        )

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, kill_points: ModuleType, limbeck: Limbeck) -> Path:
    """The project of a run that was never stopped; do not change it. Its recipe is recipe.yaml, its run run/."""
    project = tmp_path_factory.mktemp("finished")
    recipe = kill_points.make_project(project)
    done = limbeck("run", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    (project / "stdout.txt").write_text(done.stdout)
    return project


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, moved as a whole, that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line within this process, where torch is imported already: (exit code, stdout, stderr)."""
    from limbeck.cli.main import run

    def call(*args: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def events_of(run: Path) -> list[dict[str, Any]]:
    """The history of a run as JSON values."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def kinds(events: Sequence[dict[str, Any]], stage: str | None = None) -> list[str]:
    """The kind of each event, of one stage or of all."""
    common = {"sequence", "attempt", "step", "time", "run_id", "stage"}
    return [next(iter(set(e) - common)) for e in events if stage in (None, e.get("stage", ""))]
