"""Runs of a host with their real process and tiny real models: whatever befalls one, its student has the same bits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from limbeck.hosting.host import RunHost, RunLimits
from limbeck.hosting.workspace import Workspace
from limbeck.testing.tiny import tiny_model_folder
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

from .conftest import PATIENCE, Place, create, reach, until, watch
from .test_recovery import left

RECIPE = """\
teacher: {plugin: transformers, model: ./teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 2}
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 16}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, num_train_epochs: 30, per_device_train_batch_size: 4, save_steps: 10}
evaluation: {samples: 1, max_new_tokens: 8}
output: OUTPUT
"""
SERVER = """\
import asyncio, sys
from pathlib import Path
from tests.hosting.test_real_runs import hosted
async def main():
    host = hosted(Path(sys.argv[1]))
    await host.start()
    assert "torch" not in sys.modules
    await asyncio.sleep(600)
asyncio.run(main())
"""


def hosted(root: Path) -> RunHost:
    """A host with real processes."""
    return RunHost(Workspace(root), RunLimits(), log=logging.getLogger("tests"))


@pytest.fixture
def real(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A workspace with a tiny teacher and rows."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = tmp_path / "workspace"
    root.mkdir()
    tiny_model_folder(root / "teacher", data / "tok_a", layers=4, seed=1, scale=3.0)
    rows = [{"prompt": f"Question {i}: ", "completion": f"what is {7 * i} plus {i}?"} for i in range(14)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(root)


def student(place: Place, output: str) -> str:
    """What the weights are."""
    return hashlib.sha256((place.root / output / "student" / "model.safetensors").read_bytes()).hexdigest()


def trained(place: Place, output: str, attempt: int) -> Callable[[], bool]:
    """Whether an attempt is in the midst of its training."""
    file = place.root / output / "events.jsonl"

    def is_so() -> bool:
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        events = map(json.loads, lines)
        return any(event["attempt"] == attempt and "metrics" in event for event in events if "attempt" in event)

    return is_so


def test_whatever_befalls_a_run_its_student_is_the_same(real: Place) -> None:
    whole, hit = "runs/whole", "runs/hit"

    async def begin() -> str:
        host = hosted(real.root)
        await host.start()
        try:
            first = await create(host, RECIPE.replace("OUTPUT", whole), "first")
            run_id = await create(host, RECIPE.replace("OUTPUT", hit), "second")
            await reach(host, first, "succeeded")
            events = await watch(host, first)
            assert {event.WhichOneof("kind") for event in events} >= {"metrics", "checkpoint_saved", "run_finished"}
            assert [one.step for one in await host.checkpoints(first)]
            await until(trained(real, hit, 1))
            await host.pause(run_id)
            await reach(host, run_id, "paused")
            await host.resume(run_id)
            await until(trained(real, hit, 2))
            process = host._ledger.find(run_id).process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            run = await reach(host, run_id, "failed")
            assert run.error.reason == "RUN_CRASHED"
            await host.resume(run_id)
            await until(trained(real, hit, 3))
        finally:
            await host.close(PATIENCE)
        assert real.states(hit)[-1] == "queued"
        return run_id

    async def end(run_id: str, mark: str) -> list[str]:
        host = hosted(real.root)
        await host.start()
        try:
            assert not left(mark)
            await reach(host, run_id, "succeeded")
            events = await watch(host, run_id)
            return [ev.RunState.Name(e.state_changed.state) for e in events if e.HasField("state_changed")]
        finally:
            await host.close(PATIENCE)

    run_id = asyncio.run(begin())
    root = Path(__file__).parents[2]
    server = subprocess.Popen([sys.executable, "-c", SERVER, real.root], cwd=root, env=os.environ)
    asyncio.run(until(trained(real, hit, 4)))
    with closing(sqlite3.connect(real.root / ".limbeck" / "runs.sqlite")) as index:
        ((mark,),) = index.execute("SELECT mark FROM runs WHERE run_id = ?", (run_id,)).fetchall()
    assert left(mark)
    server.kill()
    server.wait()
    told = asyncio.run(end(run_id, mark))
    assert told[-1] == "RUN_STATE_SUCCEEDED"
    assert len(real.events(hit)) > len(real.events(whole))
    assert student(real, hit) == student(real, whole)


def test_knobs_and_checkpoints_of_a_run_that_trains(real: Place) -> None:
    async def main() -> None:
        host = hosted(real.root)
        await host.start()
        try:
            (real.root / "bad.jsonl").write_text('{"prompt": 3}\n')
            bad = await host.validate(RECIPE.replace("OUTPUT", "runs/a").replace("rows.jsonl", "bad.jsonl"))
            assert ("bad.jsonl", 1) in {(one.file, one.line) for one in bad.error.problems}, bad.error
            good = await host.validate(RECIPE.replace("OUTPUT", "runs/a"))
            assert not good.HasField("error"), good.error
            assert str(real.root) not in good.resolved + good.facts
            recipe = RECIPE.replace("OUTPUT", "runs/a").replace("num_train_epochs: 30", "num_train_epochs: 300")
            run_id = await create(host, recipe)
            await until(trained(real, "runs/a", 1))
            await host.update_knobs(run_id, {"losses.cross_entropy.weight": 0.5})
            saved = await host.save_checkpoint(run_id)
            assert saved.step in [one.step for one in await host.checkpoints(run_id)]
            assert (host.folder(run_id) / saved.path / "manifest.json").exists()
            await until(lambda: not host._index.knobs(run_id))
            knobs = {knob.name: knob.value for knob in host.get(run_id).knobs}
            assert knobs["losses.cross_entropy.weight"] == 0.5
            await host.cancel(run_id)
            await reach(host, run_id, "cancelled")
            kinds = [event.WhichOneof("kind") for event in await watch(host, run_id)]
            assert kinds.count("knob_changed") == 1
            assert host.get(run_id).restart == pb.RESTART_POLICY_RESUME
        finally:
            await host.close(PATIENCE)

    asyncio.run(main())


def test_a_file_that_is_broken_after_the_look_fails_the_run_with_its_place(real: Place) -> None:
    async def main() -> None:
        host = hosted(real.root)
        await host.start()
        try:
            recipe = RECIPE.replace("OUTPUT", "runs/late")
            assert not (await host.validate(recipe)).HasField("error")
            with (real.root / "rows.jsonl").open("a") as rows:
                rows.write("{\n")
            run = await reach(host, await create(host, recipe), "failed")
            assert run.error.reason == "DATA_INVALID"
            (problem,) = run.error.problems
            assert (problem.file, problem.line) == ("rows.jsonl", 15)
            assert real.states("runs/late") == ["created", "validating", "queued", "failed"]
        finally:
            await host.close(PATIENCE)

    asyncio.run(main())
