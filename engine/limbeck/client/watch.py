"""The events of a run, over as many connections as it takes: each is given once, in order."""

from __future__ import annotations

import asyncio
from typing import Any

from limbeck.client.errors import unavailable
from limbeck.client.link import FIRST_DELAY, Link, Retries
from limbeck.client.records import ENDED, asked, run_of, state_number
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event

_ENDED = {state_number(state) for state in ENDED}


class Watch:
    """WatchRun. `next` gives events as they come, None after the last of a run that ended; `close` at any time.

    Events are read from the network as the caller takes them: a slow one holds the server back.
    """

    def __init__(self, link: Link, run_id: str, after: int | None) -> None:
        if after is not None and not (type(after) is int and 0 <= after < 1 << 64):
            told = "a sequence, 0 to begin with the first, or None for the oldest that is kept"
            problem = Problem(f"is {after!r}, allowed is {told}", field="after")
            raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem])
        self._link, self._run_id, self._last = link, run_id, after
        self._retries = Retries(link)
        self._call: Any = None
        self._ended = False  # the last event says that the run ended
        self._rests = False  # the last that was heard is a sign of life
        self._over = False

    async def next(self) -> list[Event] | None:
        """Some events, at least one; None after the last. Raises the error that the call ended with."""
        while not self._over:
            try:
                if found := await self._more():
                    return found
            except LimbeckError as error:
                await self.close()
                rested, self._rests = self._rests, False
                if rested and error.reason is Reason.SERVER_UNAVAILABLE and not self._link.closed:
                    await asyncio.sleep(FIRST_DELAY)  # a server ends a call that has nothing to say for long
                else:
                    await asyncio.sleep(self._retries.delay(error))
        return None

    async def close(self) -> None:
        """Stop."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def _more(self) -> list[Event]:
        """What comes next of the connection; nothing for a sign of life, or for the end."""
        if self._call is None:
            request = asked(pb.WatchRunRequest, run_id=self._run_id, after_sequence=self._last)
            self._call = self._link.call("WatchRun", request)
        response = await self._link.read(self._call)
        if response is None:
            await self._finish()
            return []
        self._retries.progress()
        kind = response.WhichOneof("kind")
        self._rests = kind == "alive"
        return self._take(response.events.events) if kind == "events" else []

    def _take(self, events: Any) -> list[Event]:
        found = []
        for event in events:
            if self._last is not None and event.sequence <= self._last:
                continue  # delivery is at least once
            due = (event.sequence or 1) if self._last is None else self._last + 1
            if event.sequence != due:
                problem = Problem(f"sequence {event.sequence} came where {due} was due", field=f"run {self._run_id}")
                raise LimbeckError(Reason.LOG_DAMAGED, "Events of the run are missing.", [problem])
            self._last = int(event.sequence)
            found.append(event)
        if found:
            last = found[-1]
            self._ended = last.WhichOneof("kind") == "state_changed" and last.state_changed.state in _ENDED
        return found

    async def _finish(self) -> None:
        """The call ended well. Where its last event is not the run's, something between ended it, or all was seen."""
        if not self._ended:
            run = run_of((await self._link.ask("GetRun", asked(pb.GetRunRequest, run_id=self._run_id))).run)
            if not run.ended or run.last_sequence > (self._last or 0):
                raise unavailable(self._link.name, f"the call ended after event {self._last or 0}, and the run goes on")
        self._over = True
        await self.close()
