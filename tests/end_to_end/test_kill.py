"""kill -9 in every stage: the resumed run ends with the same bits and says so (more: benchmarks/kill_points.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import command, environment, events_of, kinds

Inside = Callable[..., tuple[int, str, str]]
# A stage, and how many of its events are to be there when the kill comes.
POINTS = [("generate", 1), ("label", 1), ("train", 6), ("train", 11), ("twin", 8), ("evaluate", 1)]


def _start(*args: str | Path, stderr: Path) -> subprocess.Popen[bytes]:
    with stderr.open("wb") as file:
        return subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=file, env=environment())


def _count(run: Path, stage: str, attempt: int) -> int:
    path = run / "events.jsonl"
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    return sum(f'"stage": "{stage}"'.encode() in line and f'"attempt": {attempt},'.encode() in line for line in lines)


def _signal_at(process: subprocess.Popen[bytes], run: Path, stage: str, events: int, attempt: int, number: int) -> int:
    """Send a signal as soon as the stage has said so much. Returns the exit code."""
    deadline = time.monotonic() + 120
    while process.poll() is None and _count(run, stage, attempt) < events:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    if process.poll() is None:
        os.kill(process.pid, number)
    return process.wait(120)


def test_a_run_killed_in_every_stage_and_resumed_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, kill_points: ModuleType, inside: Inside
) -> None:
    recipe, run = kill_points.make_project(tmp_path), tmp_path / "run"
    killed = 0
    for attempt, (stage, count) in enumerate(POINTS, 1):
        process = _start("run" if attempt == 1 else "resume", recipe, stderr=tmp_path / "stderr.txt")
        killed += _signal_at(process, run, stage, count, attempt, signal.SIGKILL) == -signal.SIGKILL
    assert killed == len(POINTS)
    code, _, err = inside("resume", run)
    assert code == 0, err
    assert kill_points.differences(run, finished / "run") == []
    events = events_of(run)
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert "rewound" in kinds(events, "train")
    assert "rewound" in kinds(events, "twin")
    assert events[-1]["attempt"] == len(POINTS) + 1


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(
    name: str, code: int, finished: Path, tmp_path: Path, kill_points: ModuleType, inside: Inside
) -> None:
    recipe, run = kill_points.make_project(tmp_path), tmp_path / "run"
    process = _start("run", recipe, stderr=tmp_path / "stderr.txt")
    assert _signal_at(process, run, "train", 4, 1, signal.Signals[name]) == code
    error = (tmp_path / "stderr.txt").read_text()
    assert f"limbeck resume {recipe}" in error
    assert "Traceback" not in error
    events = events_of(run)
    assert events[-2]["run_interrupted"] == {"signal": name}
    states = [event["state_changed"]["state"] for event in events if "state_changed" in event]
    assert states[-2:] == ["RUN_STATE_PAUSING", "RUN_STATE_PAUSED"]
    saved = [event["step"] for event in events if "checkpoint_saved" in event]
    assert saved[-1] == max((event["step"] for event in events if "metrics" in event), key=int)
    code, _, err = inside("resume", recipe)
    assert code == 0, err
    assert kill_points.differences(run, finished / "run") == []
