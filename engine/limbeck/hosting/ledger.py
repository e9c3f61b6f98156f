"""The runs of a server: what is known of each, and how it is written down: the history first, the index after it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import FolderLock
from limbeck.hosting.history import History
from limbeck.hosting.index import Index
from limbeck.hosting.record import ENDED, WAITING, Record, now, set_knobs
from limbeck.hosting.workspace import Workspace
from limbeck.runs.events import EVENTS, append_event
from limbeck.runs.folder import read_identity
from limbeck.signals.messages import error_message
from limbeck.v1 import error_pb2
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

Log = logging.LoggerAdapter[logging.Logger]
_UNTRAINED = WAITING | {
    ev.RUN_STATE_GENERATING,
    ev.RUN_STATE_PREPARING,
    ev.RUN_STATE_LABELLING,
    ev.RUN_STATE_PAUSED,
    ev.RUN_STATE_FAILED,
}  # what was asked of knobs is what the training begins with


class Ledger:
    """Every run whose folder is kept, in memory; all others are read of the index when they are asked for."""

    def __init__(self, workspace: Workspace, index: Index, log: logging.Logger) -> None:
        self.workspace, self.index = workspace, index
        self._log = log
        self.records: dict[str, Record] = {}
        self._behind = False  # whether the log tells that the index cannot be written

    def log(self, record: Record) -> Log:
        """The log, with the run."""
        return logging.LoggerAdapter(self._log, {"run": record.run_id})

    def add(self, record: Record) -> None:
        """Know a run."""
        record.history = History(record, self.folder(record) / EVENTS, self.workspace.public)
        if not record.expired:
            self.records[record.run_id] = record

    def find(self, run_id: str) -> Record:
        """A run. Raises RUN_UNKNOWN."""
        record = self.records.get(run_id)
        if record is None and (record := self.index.find(run_id)) is not None:
            self.add(record)
        if record is None:
            problem = Problem(f"{run_id[:80]!r} is no run of this server", field="run_id")
            raise LimbeckError(Reason.RUN_UNKNOWN, problems=[problem])
        return record

    def folder(self, record: Record) -> Path:
        """Where a run's files are."""
        return self.workspace.root / record.run.output

    def queue(self) -> list[Record]:
        """Runs that wait for a process, in their order."""
        waiting = (one for one in self.records.values() if one.state == ev.RUN_STATE_QUEUED and one.task is None)
        return sorted(waiting, key=lambda one: one.turn)

    def waiting(self) -> list[Record]:
        """Runs that have no process yet: those that are to be looked at, too."""
        return [one for one in self.records.values() if one.state in WAITING and (one.process is None or one.looking)]

    def next_turn(self) -> int:
        """The end of the queue."""
        return max((one.turn for one in self.records.values()), default=0) + 1

    def message(self, record: Record) -> pb.Run:
        """A run as clients see it, now."""
        message = pb.Run()
        message.CopyFrom(record.run)
        message.oldest_sequence = self.history(record).oldest
        if record.state == ev.RUN_STATE_QUEUED and record.task is None and not record.expired:
            message.queue_position = self.queue().index(record) + 1
        if record.state in _UNTRAINED and not record.expired:
            for _, values in self.index.knobs(record.run_id):
                set_knobs(message, values)
        return message

    def history(self, record: Record) -> History:
        """A run's history."""
        assert record.history is not None
        return record.history

    def public_error(self, error: LimbeckError) -> error_pb2.Error:
        """An error as a run's clients see it."""
        return error_message(self.workspace.error(error))

    # ------------------------------------------------------------------------------------------------ written down

    async def save(self, record: Record, *, must: bool = False) -> None:
        """Write what is known of a run into the index; where that fails it is done later, or, with `must`, raised."""
        record.dirty = False
        try:
            await self.index.save(record)
        except LimbeckError as error:
            record.dirty = True
            if must:
                raise
            if not self._behind:
                self.log(record).warning("the index of runs is behind: %s", error)
            self._behind = True
        else:
            self._behind = False

    async def follow(self, record: Record, until: int | None = None) -> None:
        """Take in what is new in a run's history, up to event `until`; what cannot be read now is read later."""
        before = record.states.ByteSize()
        try:
            await self.history(record).advance(until)
        except (LimbeckError, OSError) as error:  # damage, or too many open files
            if not record.damaged:
                self.log(record).error("the history cannot be read: %s", error)
            record.damaged = True
        else:
            record.damaged = False
        if record.states.ByteSize() != before:
            await self.save(record)

    async def say(
        self, record: Record, state: ev.RunState, error: error_pb2.Error | None = None, *, must: bool = False
    ) -> None:
        """A run is in another state: an event of its history, then of the index.

        Only for a run that no process works on. Raises RUN_LOCKED where one does that is not this server's. Where the
        history cannot be written the index alone knows, until it can; with `must` that is raised: DISK_FULL,
        LOG_DAMAGED, FOLDER_NOT_OURS.
        """
        change = ev.StateChanged(state=state, error=error)
        record.unsaid.events.add(state_changed=change, time=now())
        try:
            await self.say_rest(record, known=len(record.unsaid.events) - 1)
        except (LimbeckError, OSError) as fault:
            locked = isinstance(fault, LimbeckError) and fault.reason == Reason.RUN_LOCKED
            if locked or must:
                del record.unsaid.events[-1:]
                raise
            self.log(record).error("the history cannot be written: %s", fault)
            record.enter(state, record.unsaid.events[-1].time, error)
            self.history(record).ring()
        await self.save(record)

    async def say_rest(self, record: Record, known: int | None = None) -> None:
        """Write what could not be written yet. The first `known` of it, all where None, were entered already.

        Raises DISK_FULL, LOG_DAMAGED, RUN_LOCKED, FOLDER_NOT_OURS, OSError.
        """
        unsaid, states, written = record.unsaid.events, record.states.states, 0
        known = len(unsaid) if known is None else known
        try:
            for event in list(unsaid):
                await asyncio.to_thread(_append, self.folder(record), record.run_id, event)
                written += 1
        finally:
            if written:
                del states[len(states) - known :]  # the history tells them now
                del unsaid[:written]
                await self.follow(record)
                for event in unsaid[: max(known - written, 0)]:
                    record.enter(event.state_changed.state, event.time, event.state_changed.error)

    async def leave(self, record: Record, *, removed: bool = True) -> None:
        """A run's folder is gone or another's, or, not `removed`, will be: what the index knows is all that is left."""
        record.expired, record.removed, record.want, record.mark = True, removed, "", ""
        del record.unsaid.events[:]
        if record.state not in ENDED:
            message = "The run's folder has been removed."
            record.enter(ev.RUN_STATE_FAILED, now(), error_message(LimbeckError(Reason.RUN_CRASHED, message)))
        self.records.pop(record.run_id, None)
        self.history(record).ring()
        with suppress(LimbeckError):  # it is of no use any more, and does no harm
            await self.index.drop_knobs(record.run_id)
        await self.save(record)

    def is_there(self, record: Record) -> bool:
        """Whether a run's folder is its own. Raises OSError where that cannot be told: too many files are open, say."""
        try:
            identity = read_identity(self.folder(record))
        except LimbeckError:
            return False
        return identity is not None and identity.run_id == record.run_id


def _append(folder: Path, run_id: str, event: ev.Event) -> None:
    identity = read_identity(folder)
    if identity is None or identity.run_id != run_id:
        problem = Problem("it is not the run's folder any more", file=str(folder))
        raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem])
    if (folder / EVENTS).is_symlink():  # the run's process is kept to the workspace, this one is not
        raise LimbeckError(Reason.LOG_DAMAGED, problems=[Problem("it is a link", file=str(folder / EVENTS))])
    with FolderLock(folder):
        append_event(folder, run_id, event.state_changed, event.time)
