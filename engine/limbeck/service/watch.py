"""The events of a run as a stream: from a cursor, as they come, with signs of life between."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.config import Timing
from limbeck.service.wire import watched
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event

PART_BYTES = 256 << 10  # of events that a message aims at


class Events(Protocol):
    """A run's history, as `limbeck.hosting.history.History` keeps it."""

    @property
    def last(self) -> int:
        """Sequence of the last event."""

    @property
    def over(self) -> bool:
        """Whether nothing will follow it."""

    @property
    def behind(self) -> bool:
        """Whether there is something to tell that is not written yet."""

    async def read(self, after: int | None, most_bytes: int) -> Sequence[bytes]:
        """Encoded events that follow `after`; None: from the oldest on."""

    async def changed(self, after: int, timeout: float) -> None:
        """Wait for more, for the end, or for `timeout` seconds."""


async def watch(
    history: Events, after: int | None, timing: Timing, check: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """The answers to a WatchRun call. `check` is asked now and then and raises what ends the call.

    Raises CURSOR_INVALID, SERVER_UNAVAILABLE where nothing new came for long, DISK_FULL where news could not be written
    for long.
    """
    said = news = checked = level = time.monotonic()
    while True:
        over = history.over  # asked before what there is: what is over by then has been read
        events = await history.read(after, PART_BYTES)
        if events:
            after = Event.FromString(events[-1]).sequence
            yield watched(events)
            said = news = time.monotonic()
        elif over and (after or 0) >= history.last:
            return
        now = time.monotonic()
        if not history.behind:
            level = now
        if now - checked >= timing.poll:
            check()
            checked = now
        if events:
            continue
        if now - news >= timing.idle:
            message = f"Nothing happened for {timing.idle:g} s; ask again with the last sequence that you have."
            raise LimbeckError(Reason.SERVER_UNAVAILABLE, message)
        if now - level >= timing.alive:  # not while an event is just being written
            hint = "make room; then watch again. GetRun tells what the run is in"
            raise LimbeckError(Reason.DISK_FULL, problems=[Problem("the run's history can't be written", hint=hint)])
        if now - said >= timing.alive:
            yield pb.WatchRunResponse(alive=pb.WatchAlive(last_sequence=history.last)).SerializeToString()
            said = now
        await history.changed(after or 0, min(timing.poll, said + timing.alive - now, news + timing.idle - now))
