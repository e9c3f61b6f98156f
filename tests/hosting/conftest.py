"""A workspace, and hosts whose runs are played by a script."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.hosting.host import RunHost, RunLimits
from limbeck.hosting.record import ENDED, name_of
from limbeck.hosting.workspace import Workspace
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

COMMAND = (sys.executable, "-P", str(Path(__file__).parent / "scripted.py"))
PATIENCE = 60.0  # seconds after which something will not come any more
RECIPE = """\
teacher: {plugin: transformers, model: ./teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl}
losses:
  - {plugin: forward_kl, top_k: 16, temperature: {plugin: piecewise, points: [[0, 2.0], [0.5, 1.0]]}}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 4}
output: OUTPUT
"""
TRAINING = ["state", "training"]
HELD = [TRAINING, ["touch", "held"], ["wait", "go"]]


@dataclass
class Place:
    """A workspace that a server may have."""

    root: Path

    def script(self, *steps: list[Any], check: str = "good") -> None:
        """What each process does."""
        (self.root / "script.json").write_text(json.dumps({"check": check, "run": steps}))

    def recipe(self, output: str = "runs/a") -> str:
        """A recipe."""
        return RECIPE.replace("OUTPUT", output)

    def host(self, **limits: Any) -> RunHost:
        """A server's host that is not started."""
        return RunHost(
            Workspace(self.root), RunLimits(**{"poll": 0.02} | limits), log=logging.getLogger("tests"), command=COMMAND
        )

    @asynccontextmanager
    async def hosting(self, grace: float = 30, **limits: Any) -> AsyncIterator[RunHost]:
        """A host."""
        host = self.host(**limits)
        await host.start()
        try:
            yield host
        finally:
            await host.close(grace)

    def go(self, name: str = "go") -> None:
        """Let a script go on that waits."""
        (self.root / name).touch()

    def events(self, output: str = "runs/a") -> list[dict[str, Any]]:
        """A history as it lies on the disk; its numbers are checked."""
        events = [json.loads(line) for line in (self.root / output / "events.jsonl").read_text().splitlines()]
        assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
        return events

    def states(self, output: str = "runs/a") -> list[str]:
        """The states that a history tells."""
        told = [event["state_changed"]["state"] for event in self.events(output) if "state_changed" in event]
        return [name.removeprefix("RUN_STATE_").lower() for name in told]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A workspace with what RECIPE names."""
    root = tmp_path / "workspace"
    (root / "teacher").mkdir(parents=True)
    (root / "teacher" / "config.json").write_text("{}")
    (root / "rows.jsonl").write_text('{"text": "a"}\n')
    return Place(root)


async def until(good: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not good():
            await asyncio.sleep(0.002)


async def create(host: RunHost, recipe: str, name: str = "one", owner: str = "me", **more: Any) -> str:
    """A new run's id."""
    return (await host.create(recipe, name, owner, more.get("restart", pb.RESTART_POLICY_UNSPECIFIED))).run_id


async def reach(host: RunHost, run_id: str, state: str) -> pb.Run:
    """Wait for a state; another one that nothing follows fails the test at once."""

    def there() -> bool:
        now = host.get(run_id).state
        assert name_of(now) == state or now not in ENDED, host.get(run_id)
        return name_of(now) == state

    await until(there)
    return host.get(run_id)


async def watch(host: RunHost, run_id: str, after: int | None = None) -> list[ev.Event]:
    """All events to the end, each checked to be the next."""
    history = host.history(run_id)
    events: list[ev.Event] = []
    last = after or 0
    while True:
        over = history.over
        read = [ev.Event.FromString(raw) for raw in await history.read(last, 500)]
        for event in read:
            assert event.sequence == last + 1
            last = event.sequence
        events += read
        if not read and over and last >= history.last:
            return events
        if not read:
            await history.changed(last, 1)


async def refused(work: Any, reason: Reason) -> LimbeckError:
    """Expects an error of this reason, without paths of this machine."""
    with pytest.raises(LimbeckError) as caught:
        await work
    assert caught.value.reason == reason
    assert "/" not in str(caught.value).replace("runs/", "").replace("log.txt", "")
    return caught.value
