"""What clients ask of a run that is there: pause, resume, cancel, other knobs, a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count

from limbeck.errors import LimbeckError, Problem, Reason, counted
from limbeck.hosting.admission import refuse_full
from limbeck.hosting.knobs import faults
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.record import ENDED, STAGES, WAITING, WORKING, Record, name_of
from limbeck.hosting.works import Works, not_training
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

NOTED_SECONDS = 1.0  # for a process to say that it pauses, so that the answer tells it already
MOST_PENDING = 256  # sets of values for knobs, of one run, that are not in force yet
MOST_SAVING = 8  # checkpoints, of one run, that are asked for
_STOPPED = {"pause": ev.RUN_STATE_PAUSED, "cancel": ev.RUN_STATE_CANCELLED}


_RESUMABLE = {ev.RUN_STATE_PAUSED, ev.RUN_STATE_FAILED}
_BEFORE = {ev.RUN_STATE_GENERATING, ev.RUN_STATE_PREPARING, ev.RUN_STATE_LABELLING, ev.RUN_STATE_TRAINING}
_TUNABLE = WAITING | _BEFORE | {ev.RUN_STATE_PAUSING, ev.RUN_STATE_PAUSED, ev.RUN_STATE_FAILED}


class Steering:
    """Each request is noted on disk before it is answered; asking again does no harm."""

    def __init__(self, ledger: Ledger, works: Works, limits: RunLimits) -> None:
        self._ledger, self._works, self._limits = ledger, works, limits
        self._numbers = count(1)

    async def pause(self, record: Record) -> None:
        """Let a run rest. Raises RUN_STATE."""
        async with record.lock:
            if record.state == ev.RUN_STATE_PAUSED or record.want == "pause":
                return
            if record.want == "cancel" or record.state not in WAITING | WORKING:
                raise _refused(record, "paused")
            await self._stop(record, "pause")
        await self._noted(record)

    async def cancel(self, record: Record) -> None:
        """End a run. Raises RUN_STATE."""
        async with record.lock:
            if record.state == ev.RUN_STATE_CANCELLED or record.want == "cancel":
                return
            if record.state in ENDED:
                raise _refused(record, "cancelled")
            await self._stop(record, "cancel")
        await self._noted(record)

    async def _stop(self, record: Record, want: str) -> None:
        if record.process is None:
            if record.state in WORKING:
                raise _elsewhere(record)
            await self._ledger.say(record, _STOPPED[want])
            self._works.pump()
            return
        before, record.want = record.want, want
        try:
            await self._ledger.save(record, must=True)  # first: a server that dies must do it at its next start
        except LimbeckError:
            record.want = before
            raise
        self._works.stop(record, want)

    async def _noted(self, record: Record) -> None:
        """Give its process a moment to say that it stops."""
        history, state, last = self._ledger.history(record), record.state, record.run.last_sequence
        loop = asyncio.get_running_loop()
        end = loop.time() + NOTED_SECONDS
        while record.process is not None and record.state == state and (left := end - loop.time()) > 0:
            await history.changed(last, left)
            last = record.run.last_sequence

    async def resume(self, record: Record) -> None:
        """Let a run go on. Raises RUN_STATE, QUOTA_EXCEEDED."""
        if record.state in _RESUMABLE and record.task is not None and record.process is not None:  # it is about to end
            await asyncio.wait([record.task])
        async with record.lock:
            if record.state in WAITING or (record.state in STAGES and not record.want):
                if record.want:
                    raise _refused(record, "resumed")
                return
            if record.state not in _RESUMABLE or record.want or record.expired:
                raise _refused(record, "resumed")
            refuse_full(self._ledger, self._limits, record.run.owner)
            record.not_before = 0.0
            if record.checked:
                record.turn = self._ledger.next_turn()
            await self._ledger.say(record, ev.RUN_STATE_QUEUED if record.checked else ev.RUN_STATE_VALIDATING)
        self._works.pump()

    async def update_knobs(self, record: Record, values: Mapping[str, float]) -> None:
        """Give knobs other values. Raises KNOB_INVALID with every problem, RUN_STATE, QUOTA_EXCEEDED."""
        async with record.lock:
            if record.state not in _TUNABLE or record.want == "cancel" or record.expired:
                message = f"it is {name_of(record.state)}: its knobs move nothing any more"
                raise LimbeckError(Reason.RUN_STATE, problems=[Problem(message, field="run_id")])
            if problems := faults(record.run.knobs, values):
                message = f"Nothing was changed: {counted(len(problems), 'problems')}."
                raise LimbeckError(Reason.KNOB_INVALID, message, problems)
            if not values:
                return
            if len(self._ledger.index.knobs(record.run_id)) >= MOST_PENDING:
                message = f"{MOST_PENDING} changes of knobs wait already to be in force"
                raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[Problem(message)])
            if record.process is None and record.state in WORKING:
                raise _elsewhere(record)
            number = await self._ledger.index.add_knobs(record.run_id, values)
            if record.process is not None and not record.looking:
                record.process.post({"knobs": {"id": number, "values": dict(values)}})
            for knob in record.run.knobs:
                knob.scheduled = knob.scheduled and knob.name not in values
            await self._ledger.save(record)

    async def save_checkpoint(self, record: Record) -> pb.Checkpoint:
        """Save a checkpoint; returns when it is whole. Raises RUN_STATE, QUOTA_EXCEEDED, DISK_FULL."""
        if record.process is None or record.state != ev.RUN_STATE_TRAINING or record.want:
            raise not_training(record)
        if len(record.saving) >= MOST_SAVING:
            message = f"{MOST_SAVING} checkpoints are being saved already"
            raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[Problem(message)])
        number = next(self._numbers)
        saved: asyncio.Future[pb.Checkpoint] = asyncio.get_running_loop().create_future()
        record.saving[number] = saved
        record.process.post({"checkpoint": number})
        try:
            return await saved
        finally:
            record.saving.pop(number, None)


def _refused(record: Record, what: str) -> LimbeckError:
    state, hint = record.state, None
    if record.expired:
        message = f"its folder is gone: it cannot be {what}"
    else:
        words = {"pause": ", about to pause", "cancel": ", about to be cancelled"}
        asked = words.get(record.want, "") if state in WAITING | WORKING else ""  # its process may be about to end
        message = f"it is {name_of(state)}{asked}: it cannot be {what}"
        if record.want == "pause" or state == ev.RUN_STATE_PAUSING:
            hint = "wait until it is paused, or cancel it"
        elif state == ev.RUN_STATE_FAILED:
            hint = "resume it, to try again"
        elif state in (ev.RUN_STATE_SUCCEEDED, ev.RUN_STATE_CANCELLED):
            hint = "create another run, with another output"
        elif state == ev.RUN_STATE_CANCELLING or record.want == "cancel":
            hint = "wait until it is cancelled"
    return LimbeckError(Reason.RUN_STATE, problems=[Problem(message, field="run_id", hint=hint)])


def _elsewhere(record: Record) -> LimbeckError:
    message = f"it is {name_of(record.state)} in a process that is not the server's"
    hint = "it was resumed by hand in its folder: stop it there"
    return LimbeckError(Reason.RUN_STATE, problems=[Problem(message, field="run_id", hint=hint)])
