"""A server that is killed at any point, and the one that comes after it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.hosting.kin import MARK
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

from .conftest import Place, create, reach, until, watch

TRAINING = ["state", "training"]
POINTS = 2  # of each kind, drawn; a larger number tries more of them
SERVER = Path(__file__).parent / "mortal.py"


def serve(place: Place, what: str, at: int, *more: str) -> int:
    """Run a server in a process of its own that kills itself before its `at`th change on disk; its exit code."""
    done = subprocess.run([sys.executable, SERVER, place.root, what, str(at), *more], timeout=120, check=False)
    return done.returncode


def left(mark: str) -> list[int]:
    """Processes that carry a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("what", ["create", "pause", "cancel", "knobs"])
def test_killed_before_a_change_on_disk(place: Place, what: str) -> None:
    """Whatever was on disk by then: the next server ends what was asked, once, and tells all of it."""
    assert point(place, what, 1_000_000)
    count = int((place.root / "count").read_text())
    assert count > 20
    for at in random.Random(what).sample(range(1, count), POINTS):
        point(place, what, at)


def point(place: Place, what: str, at: int) -> bool:
    """A server that is killed, or, after fewer changes, is not, and the next one; whether it was not."""
    held: list[list[object]] = [] if what == "create" else [["touch", "held"], ["wait", "go"]]
    place.script(TRAINING, *held)
    output = f"runs/{what}-{at}"
    for name in ("held", "go", "knobs"):
        (place.root / name).unlink(missing_ok=True)
    code = serve(place, what, at, output)
    assert code in (0, -signal.SIGKILL)
    asyncio.run(_after(place, what, output, survived=code == 0))
    return code == 0


async def _after(place: Place, what: str, output: str, *, survived: bool) -> None:
    place.go()
    async with place.hosting() as host:
        runs = {run.output: run for run in host.list([], 200, "").runs}
        if output not in runs:  # it was not asked yet
            assert not survived
            assert not (place.root / output).exists()
            await create(host, place.recipe(output), output)
            runs = {run.output: run for run in host.list([], 200, "").runs}
        run = runs[output]
        assert await create(host, place.recipe(output), output) == run.run_id
        await until(lambda: host.get(run.run_id).state in (8 + 2, 12, 14))
        state = host.get(run.run_id).state
        expected = {"pause": ev.RUN_STATE_PAUSED, "cancel": ev.RUN_STATE_CANCELLED}.get(what, ev.RUN_STATE_SUCCEEDED)
        assert state in ({expected} if survived else {expected, ev.RUN_STATE_SUCCEEDED})
        if state == ev.RUN_STATE_PAUSED:
            await host.resume(run.run_id)
            await reach(host, run.run_id, "succeeded")
        events = await watch(host, run.run_id)
        assert [event.sequence for event in events] == list(range(1, len(place.events(output)) + 1))
        states = place.states(output)
        assert states[:2] == ["created", "validating"]
        assert all(one != other for one, other in pairwise(states)), states
        assert not host._index.knobs(run.run_id)


@pytest.mark.parametrize("restart", [pb.RESTART_POLICY_RESUME, pb.RESTART_POLICY_FAIL])
@pytest.mark.parametrize("want", ["", "pause", "cancel"])
def test_killed_while_a_run_works(place: Place, restart: pb.RestartPolicy, want: str) -> None:
    """With a process that hears nothing and goes on alone, as one that is deep in a kernel does."""
    place.script(TRAINING, ["touch", "held"], ["deaf", "go"], ["wait", "never"])
    server = subprocess.Popen([sys.executable, SERVER, place.root, f"work {want}".strip(), "0", "runs/a", str(restart)])
    asyncio.run(until((place.root / "ready").exists))
    mark = (place.root / "ready").read_text()
    (child,) = left(mark)
    os.kill(child, signal.SIGSTOP)  # it does not see that its server has gone
    server.kill()
    server.wait()
    place.go("never")
    place.go()

    async def main() -> None:
        async with place.hosting() as host:
            assert not left(mark)
            (run,) = host.list([], 0, "").runs
            if want:
                assert run.state == {"pause": ev.RUN_STATE_PAUSED, "cancel": ev.RUN_STATE_CANCELLED}[want]
            elif restart == pb.RESTART_POLICY_FAIL:
                assert run.state == ev.RUN_STATE_FAILED
                assert run.error.reason == "RUN_CRASHED"
            else:
                assert (await reach(host, run.run_id, "succeeded")).attempt == 2
            if run.state in (ev.RUN_STATE_PAUSED, ev.RUN_STATE_FAILED):
                await host.resume(run.run_id)
                await reach(host, run.run_id, "succeeded")
            await watch(host, run.run_id)
            place.events()

    asyncio.run(main())


def test_what_is_gone_or_another_s_is_left_alone(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["wait", "go"])
        async with place.hosting() as host:
            first = await create(host, place.recipe())
            second = await create(host, place.recipe("runs/b"), "two")
            await until((place.root / "held").exists)
        (place.root / "runs" / "a").rename(place.root / "moved")
        (place.root / "runs" / "b" / "run.json").write_text((place.root / "moved" / "run.json").read_text())
        stray = place.root / f".run-{'0' * 32}.yaml"
        stray.write_text("of a look that was cut off")
        async with place.hosting() as host:
            for run_id in (first, second):
                run = host.get(run_id)
                assert run.state == ev.RUN_STATE_FAILED
                assert run.oldest_sequence > run.last_sequence
                with pytest.raises(LimbeckError):
                    await host.resume(run_id)
            assert not stray.exists()
            assert (place.root / "runs" / "b" / "events.jsonl").exists()

    asyncio.run(main())
