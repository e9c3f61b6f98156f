"""What a server finds of its runs when it starts, however the last one ended: each is brought to a state that holds.

What is written before what, and so what may be found: a run's row, its recipe's file, its folder, its first events; of
a request the row's `want` before the process hears of it; of a process its `mark` before it is started; of a state its
event before the row's; of a removal the row's `expired` before the files go.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import FolderLock
from limbeck.hosting.admission import Admission
from limbeck.hosting.kin import end_marked
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.outcome import GO_ON, End
from limbeck.hosting.record import ENDED, WORKING, Record
from limbeck.hosting.retention import Retention
from limbeck.hosting.works import Works
from limbeck.v1 import event_pb2 as ev

LOCK_SECONDS = 5.0  # that what was killed may take to let go of its folder


class Recovery:
    """Brings what a former server left to order. Starts nothing."""

    def __init__(self, ledger: Ledger, admission: Admission, works: Works, retention: Retention) -> None:
        self._ledger, self._admission, self._works, self._retention = ledger, admission, works, retention

    async def run(self) -> None:
        """All of it; a run that cannot be is told of in the log, and does not keep the server from starting."""
        for record in self._ledger.index.kept():
            self._ledger.add(record)
        records = list(self._ledger.records.values())
        marks = [record.mark for record in records if record.mark]
        for mark in marks:  # all of them before anything is decided
            await asyncio.to_thread(end_marked, mark)
        for record in records:
            try:
                await self._recover(record)
            except (LimbeckError, OSError) as error:
                self._ledger.log(record).error("the run cannot be brought to order: %s", error)
        await self._retention.finish()
        self._sweep_recipes()

    async def _recover(self, record: Record) -> None:
        ledger = self._ledger
        if record.state == ev.RUN_STATE_CREATED and not record.run.last_sequence:
            try:
                await self._admission.establish(record)
            except LimbeckError as error:
                if error.reason != Reason.FOLDER_NOT_OURS:
                    raise
                await ledger.leave(record)
            return
        if not ledger.is_there(record):
            await ledger.leave(record)
            return
        await ledger.follow(record)
        with suppress(LimbeckError, OSError):  # a full disk: later
            await ledger.say_rest(record)
        if record.state == ev.RUN_STATE_CREATED:
            await self._admission.establish(record)
        elif record.mark and record.state == ev.RUN_STATE_VALIDATING:
            if record.want:
                cancelled = record.want == "cancel"
                await ledger.say(record, ev.RUN_STATE_CANCELLED if cancelled else ev.RUN_STATE_PAUSED)
        elif record.mark and await self._let_go(record):
            problem = Problem("the server ended while it worked on the run", hint=GO_ON)
            crash = LimbeckError(Reason.RUN_CRASHED, problems=[problem])
            await self._works.settle(record, End(None, ledger.public_error(crash), server=True))
        elif record.state in WORKING and await self._let_go(record):
            await self.lost(record)
        if record.checked is False and record.state == ev.RUN_STATE_QUEUED:
            record.checked, record.turn = True, record.turn or ledger.next_turn()  # the row was behind
        record.mark, record.want = "", ""
        if record.state in ENDED and record.state != ev.RUN_STATE_FAILED:
            await ledger.index.drop_knobs(record.run_id)
        await ledger.save(record)

    async def lost(self, record: Record) -> None:
        """A run that was resumed by hand works no more, and said no last word."""
        problem = Problem("the process that worked on it, not one of the server, ended without a word", hint=GO_ON)
        error = self._ledger.public_error(LimbeckError(Reason.RUN_CRASHED, problems=[problem]))
        await self._ledger.say(record, ev.RUN_STATE_FAILED, error)

    async def _let_go(self, record: Record) -> bool:
        """Whether nobody writes in a run's folder, or soon nobody does: what was killed is about to end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (LOCK_SECONDS if record.mark else 0.0)
        while not free(self._ledger, record):
            if loop.time() >= end:
                self._ledger.log(record).warning("another process works on the run")
                return False
            await asyncio.sleep(0.05)
        await self._ledger.follow(record)  # what it has written last
        return True

    def _sweep_recipes(self) -> None:
        """Remove recipes of looks that were cut off, and of runs that were never made."""
        for file in self._ledger.workspace.root.glob(".run-*.yaml"):
            run_id = file.name.removeprefix(".run-").removesuffix(".yaml")
            known = run_id in self._ledger.records or self._ledger.index.find(run_id) is not None
            if not known and len(run_id) == 32:
                file.unlink(missing_ok=True)


def free(ledger: Ledger, record: Record) -> bool:
    """Whether no process works on a run."""
    try:
        FolderLock(ledger.folder(record)).release()
    except LimbeckError:
        return False
    return True
