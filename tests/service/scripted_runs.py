"""A stand-in for what keeps a server's runs: a test decides what there is and what happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import error_pb2
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event, Log, RunState

RUN = "0123abcd"


class ScriptedHistory:
    """Events that the test says happened."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.oldest, self.over, self.behind = 1, False, False
        self.waiting = 0
        self._bell = asyncio.Event()

    @property
    def last(self) -> int:
        return len(self.events)

    async def read(self, after: int | None, most_bytes: int) -> Sequence[bytes]:
        after = self.oldest - 1 if after is None else after
        if not self.oldest - 1 <= after <= self.last:
            problem = Problem(f"{after} is not kept, the oldest is {self.oldest}", field="after_sequence")
            raise LimbeckError(Reason.CURSOR_INVALID, problems=[problem])
        found: list[bytes] = []
        for event in self.events[after:]:
            if found and sum(map(len, found)) + len(event) > most_bytes:
                break
            found.append(event)
        return found

    async def changed(self, after: int, timeout: float) -> None:
        self.waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while self.last <= after and not self.over:
                        await self._bell.wait()
        finally:
            self.waiting -= 1

    def say(self, *texts: str, over: bool = False) -> None:
        """More happened."""
        for text in texts:
            event = Event(sequence=self.last + 1, run_id=RUN, log=Log(message=text))
            self.events.append(event.SerializeToString())
        self.over = over
        self._bell.set()
        self._bell = asyncio.Event()


class ScriptedRuns:
    """Has one run, in `folder`. `asked`: what it was asked, in order. `error`: what the next call fails with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.run = pb.Run(run_id=RUN, output="out", state=RunState.RUN_STATE_SUCCEEDED)
        self.past = ScriptedHistory()
        self.asked: list[Any] = []
        self.error: LimbeckError | None = None
        self.started = False
        self.closed: float | None = None

    async def start(self) -> None:
        self.started = True

    async def close(self, grace: float) -> None:
        self.closed = grace

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _of(self, run_id: str, *what: Any) -> pb.Run:
        self._ask(*what)
        if run_id != RUN:
            raise LimbeckError(Reason.RUN_UNKNOWN, problems=[Problem(f"{run_id!r} is no run here", field="run_id")])
        return self.run

    async def validate(self, recipe: str) -> pb.ValidateRecipeResponse:
        self._ask("validate", recipe)
        problems = [error_pb2.Problem(message=f"problem {n} " + "x" * 200, line=n) for n in range(1, 500)]
        return pb.ValidateRecipeResponse(error=error_pb2.Error(reason="RECIPE_INVALID", problems=problems))

    async def create(self, recipe: str, request_id: str, owner: str, restart: int) -> pb.Run:
        self._ask("create", recipe, request_id, owner, restart)
        return self.run

    def get(self, run_id: str) -> pb.Run:
        return self._of(run_id, "get")

    def details(self, run_id: str) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self._of(run_id, "details"), recipe="a: 1")

    def list(self, states: Any, size: int, token: str) -> pb.ListRunsResponse:
        self._ask("list", list(states), size, token)
        return pb.ListRunsResponse(runs=[self.run], next_page_token="more")

    async def pause(self, run_id: str) -> pb.Run:
        return self._of(run_id, "pause")

    async def resume(self, run_id: str) -> pb.Run:
        return self._of(run_id, "resume")

    async def cancel(self, run_id: str) -> pb.Run:
        return self._of(run_id, "cancel")

    async def update_knobs(self, run_id: str, values: Mapping[str, float]) -> pb.Run:
        return self._of(run_id, "knobs", dict(values))

    async def save_checkpoint(self, run_id: str) -> pb.Checkpoint:
        self._of(run_id, "checkpoint")
        return pb.Checkpoint(path="checkpoints/student/step-3", step=3, bytes=7)

    async def checkpoints(self, run_id: str) -> Sequence[pb.Checkpoint]:
        self._of(run_id, "checkpoints")
        return [pb.Checkpoint(path="checkpoints/student/step-3", step=3, bytes=7)]

    def folder(self, run_id: str) -> Path:
        self._of(run_id, "folder")
        return self._folder

    def history(self, run_id: str) -> ScriptedHistory:
        self._of(run_id, "history")
        return self.past
