"""What works on the runs: the queue, a process for each run that has its turn, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from limbeck.errors import LimbeckError, Problem, Reason, shutting_down
from limbeck.files import write_atomic
from limbeck.hosting.channel import NONSENSE, Checked, Ended, Start, error_of
from limbeck.hosting.checkpoints import checkpoint_of
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.looks import Looks
from limbeck.hosting.outcome import GO_ON, End, outcome
from limbeck.hosting.process import RunProcess, how, last_lines, open_log
from limbeck.hosting.record import ENDED, Record, name_of, now
from limbeck.hosting.retention import Retention
from limbeck.runs.states import add_last_lines
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.error_pb2 import Error

LINGER_SECONDS = 10.0  # that a process may take to end once it has said its last word
_FEW = 250  # characters of last lines that fit an error of a call, of whose texts only so much is sent
LOCKED_SECONDS = 5.0  # until a run is tried again that another process works on

T = TypeVar("T")


@dataclass(slots=True)
class Heard:
    """What a process has said of its work."""

    checked: Checked | None = None
    ended: Ended | None = None

    @property
    def error(self) -> LimbeckError | None:
        """What it told of."""
        last = self.checked or self.ended
        return None if last is None else last.error


class Works:
    """Starts processes as there is room, hears them, and settles what their end means."""

    def __init__(self, ledger: Ledger, limits: RunLimits, retention: Retention, command: Sequence[str]) -> None:
        self._ledger, self._limits, self._retention, self._command = ledger, limits, retention, command
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closing = False
        self._looks = Looks()
        self._looking: RunProcess | None = None  # at a recipe for somebody who asks
        self.checking = asyncio.Semaphore(1)  # one look at a recipe at a time: it loads models' configs and reads rows

    # -------------------------------------------------------------------------------------------------- the queue

    def pump(self) -> None:
        """Start what has its turn."""
        if self.closing:
            return
        records, moment = list(self._ledger.records.values()), time.monotonic()
        for record in sorted(records, key=lambda one: one.number):
            is_due = moment >= record.not_before and record.task is None and not record.lock.locked()
            if record.state == ev.RUN_STATE_VALIDATING and is_due:
                self._begin(record, check=True)
        busy = sum(one.task is not None and not one.looking for one in records)
        for record in self._ledger.queue():
            if busy >= self._limits.max_runs:
                return
            if moment >= record.not_before and not record.lock.locked():
                self._begin(record, check=False)
                busy += 1

    def _begin(self, record: Record, *, check: bool) -> None:
        record.looking = check
        record.task = self._do(self._live(record, check=check))

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end also where whoever asked is gone meanwhile: nobody else would do the rest."""
        return await asyncio.shield(self._do(work))

    def _do(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, record: Record, *, check: bool) -> None:
        try:
            if not check:
                await self._attempt(record, check=False)
            elif not await self._looked_at(record):
                async with self.checking:
                    await self._attempt(record, check=True)
        except Exception:  # a fault of ours, in one run: the others go on
            self._ledger.log(record).exception("the run's keeper failed")
            _later(record)
        finally:
            record.task = None
            self.pump()
            self._do(self._retention.apply())

    async def _looked_at(self, record: Record) -> bool:
        """Whether a run's recipe was found good just now, so that no process has to look again: it is in the queue."""
        async with record.lock:
            if record.state != ev.RUN_STATE_VALIDATING or self.closing:
                return False
            is_good = self._looks.good(self._ledger.index.recipe(record.run_id))
            if is_good:
                await self._enqueue(record)
            return is_good

    async def _enqueue(self, record: Record) -> None:
        """Put a run into the queue whose recipe is good; later where another process works on it."""
        record.checked, record.turn = True, self._ledger.next_turn()
        try:
            await self._ledger.say(record, ev.RUN_STATE_QUEUED)
        except LimbeckError:
            record.checked, record.turn = False, 0
            _later(record)

    async def _attempt(self, record: Record, *, check: bool) -> None:
        """One process for a run, from its start to what its end means."""
        log, ledger = self._ledger.log(record), self._ledger
        async with record.lock:
            expected = ev.RUN_STATE_VALIDATING if check else ev.RUN_STATE_QUEUED
            if record.state != expected or self.closing:  # it was paused or cancelled while it had no process yet
                return
            try:
                await ledger.say_rest(record)
                self._lay_recipe(record)
                waiting = [] if check else ledger.index.knobs(record.run_id)
                output = open_log(ledger.folder(record))
            except (LimbeckError, OSError) as fault:
                await self._not_started(record, fault)
                return
            begin = os.fstat(output).st_size
            record.mark, record.want, record.killed, record.size = uuid4().hex, "", False, 0
            try:
                # first: a server that dies must know what to end
                await ledger.save(record, must=True)
                record.process = process = await RunProcess.start(
                    self._start(record, check=check), record.mark, output, self._command
                )
            except (LimbeckError, OSError) as fault:
                os.close(output)
                await self._not_started(record, fault)
                return
            for number, values in waiting:  # before any that come from now on: their ids only grow
                process.post({"knobs": {"id": number, "values": values}})
            if self.closing:
                self.stop(record, "server")
        log.info("process %d starts%s", process.pid, ": a look at the recipe" if check else "")
        heard = Heard()
        try:
            await self._hear(record, process, heard, check=check)
        finally:
            code = await process.end()
            said = last_lines(output, begin)
            os.close(output)
            log.info("process %d ended %s", process.pid, how(code))
            async with record.lock:
                record.process = None
                ended = self._too_late if check and record.killed else how(code)
                error = self._crash(ended, said) if heard.error is None else self._error(heard.error, said)
                await self._settle(record, heard, error, check=check)

    def _start(self, record: Record, *, check: bool) -> Start:
        workspace, folder = self._ledger.workspace, self._ledger.folder(record)
        resume = not check and (folder / "resolved.yaml").is_file()
        do: Any = "check" if check else "run"
        return Start(do, workspace.recipe_file(record.run_id), workspace.root, workspace.read, resume)

    def _lay_recipe(self, record: Record) -> None:
        """Where somebody removed the recipe's file, put it there again."""
        file = self._ledger.workspace.recipe_file(record.run_id)
        if not file.is_file():
            write_atomic(file, self._ledger.index.recipe(record.run_id))

    async def _not_started(self, record: Record, fault: Exception) -> None:
        """What keeps a run from its start: another process that works on it, a full disk, no memory."""
        self._ledger.log(record).error("the run cannot be started: %s", fault)
        record.mark = ""
        if not self._ledger.is_there(record):
            await self._ledger.leave(record)
        elif isinstance(fault, LimbeckError) and fault.reason in (Reason.RUN_LOCKED, Reason.DISK_FULL):
            _later(record)
            if fault.reason == Reason.DISK_FULL and not record.unsaid.events:
                await self._ledger.say(record, ev.RUN_STATE_FAILED, self._ledger.public_error(fault))
        else:
            error = fault if isinstance(fault, LimbeckError) else _crashed(f"it could not be started: {fault}")
            await self._ledger.say(record, ev.RUN_STATE_FAILED, self._ledger.public_error(error))

    # --------------------------------------------------------------------------------------------------- a process

    async def _hear(self, record: Record, process: RunProcess, heard: Heard, *, check: bool) -> None:
        """What a process says until it ends; of its work into `heard`."""
        loop = asyncio.get_running_loop()
        late: asyncio.TimerHandle | None = None
        if check:
            late = loop.call_later(self._limits.check_seconds, _kill_late, record, process)
        try:
            async for messages in process.messages():
                ticks = [int(message["tick"]) for message in messages if "tick" in message]
                if ticks:
                    await self._ledger.follow(record, max(ticks))
                for message in messages:
                    if "checked" in message:
                        heard.checked = Checked.of(message)
                    elif "ended" in message:  # it has nothing left to do, whatever a library's threads may think
                        heard.ended = Ended.of(message)
                        late = late or loop.call_later(LINGER_SECONDS, process.kill)
                    elif "knobs" in message:
                        with suppress(LimbeckError):  # a full disk: they are said again at the next start, to no harm
                            await self._ledger.index.drop_knobs(record.run_id, int(message["knobs"]))
                    elif "checkpoint" in message:
                        self._saved(record, message)
        except NONSENSE as fault:  # it speaks nonsense: an end without a word
            self._ledger.log(record).error("the run's process cannot be understood: %s", fault)
        finally:
            if late is not None:
                late.cancel()

    def _saved(self, record: Record, message: dict[str, Any]) -> None:
        """A checkpoint that was asked for is there, or cannot be."""
        waiting = record.saving.get(int(message["checkpoint"]))
        if waiting is None or waiting.done():
            return
        if message.get("error"):
            waiting.set_exception(error_of(message["error"]))
            return
        saved = checkpoint_of(self._ledger.folder(record), int(message["step"]))
        if saved is None:  # rotated away already
            saved = pb.Checkpoint(path=message["path"], step=message["step"], bytes=message["bytes"], time=now())
        waiting.set_result(saved)

    def stop(self, record: Record, why: str) -> None:
        """Ask a run's process to stop where the run can go on, and see to it that it does."""
        process = record.process
        if process is None:
            return
        if record.state == ev.RUN_STATE_VALIDATING:  # it has nothing to save
            process.kill()
            return
        process.post({"stop": why})

        def kill() -> None:
            self._ledger.log(record).warning("process %d did not stop in time and is killed", process.pid)
            record.killed = True
            process.kill()

        if record.late is not None:
            record.late.cancel()
        record.late = asyncio.get_running_loop().call_later(self._limits.patience, kill)

    @property
    def _too_late(self) -> str:
        """How a look at a recipe ended that took too long."""
        return f"by this server: a look at a recipe may take {self._limits.check_seconds:g} s"

    def _crash(self, ended: str, said: str) -> Error:
        """The error of a run whose process ended without a word."""
        problem = Problem(f"it ended {ended}", hint=GO_ON)
        error = self._ledger.public_error(LimbeckError(Reason.RUN_CRASHED, problems=[problem]))
        add_last_lines(error, self._ledger.workspace.public(said))
        return error

    # ------------------------------------------------------------------------------------------------- what it means

    async def _settle(self, record: Record, heard: Heard, error: Error, *, check: bool) -> None:
        """Write down what the end of a run's process means; `error`: why it fails, where that is what it does."""
        ledger = self._ledger
        if record.late is not None:
            record.late.cancel()
            record.late = None
        for waiting in record.saving.values():
            if not waiting.done():
                waiting.set_exception(not_training(record))
        await ledger.follow(record)
        try:
            if check:
                await self._settle_check(record, heard.checked, error)
            elif heard.error is not None and heard.error.reason is Reason.RUN_LOCKED:
                _later(record)  # another process works on it, `limbeck resume` say
            else:
                word = None if heard.ended is None else heard.ended.how
                await self.settle(record, End(word, error, self.closing))
        except LimbeckError:  # another process works on it by now
            _later(record)
        record.mark, record.want, record.killed = "", "", False
        if record.state in (ev.RUN_STATE_SUCCEEDED, ev.RUN_STATE_CANCELLED):
            with suppress(LimbeckError):
                await ledger.index.drop_knobs(record.run_id)
        await ledger.save(record)

    async def settle(self, record: Record, end: End) -> None:
        """Say the state that follows the end of a run's process. Raises RUN_LOCKED where another one goes on."""
        follows = outcome(record, end)
        if follows is not None:
            await self._ledger.say(record, *follows)

    async def _settle_check(self, record: Record, checked: Checked | None, error: Error) -> None:
        is_good = _found_good(checked)
        self._looks.note(self._ledger.index.recipe(record.run_id), good=is_good)
        if record.state != ev.RUN_STATE_VALIDATING:  # another process took it meanwhile, and has told its state
            return
        if record.want:
            state = ev.RUN_STATE_CANCELLED if record.want == "cancel" else ev.RUN_STATE_PAUSED
            await self._ledger.say(record, state)
        elif is_good:
            await self._enqueue(record)
        elif not self.closing:
            await self._ledger.say(record, ev.RUN_STATE_FAILED, error)

    def _error(self, told: LimbeckError, said: str) -> Error:
        """The error that a process told of, as clients see it; with its last lines where they may tell more."""
        error = self._ledger.public_error(told)
        if told.reason in (Reason.INTERNAL, Reason.DISK_FULL):
            add_last_lines(error, self._ledger.workspace.public(said))
        return error

    # ------------------------------------------------------------------------------------------------------- a look

    async def check(self, recipe: str) -> Checked:
        """What a look at a recipe finds.

        Raises RUN_CRASHED, DISK_FULL, SERVER_UNAVAILABLE where the server ends meanwhile.
        """
        workspace, ident = self._ledger.workspace, uuid4().hex
        file = workspace.recipe_file(ident)
        found: Checked | None = None
        async with self.checking:
            if self.closing:  # meanwhile
                raise shutting_down()
            output = os.memfd_create("limbeck-check", os.MFD_CLOEXEC)
            try:
                write_atomic(file, recipe)
                start = Start("check", file, workspace.root, workspace.read)
                try:
                    process = self._looking = await RunProcess.start(start, ident, output, self._command)
                except OSError as fault:
                    raise _crashed(f"it could not be started: {fault.strerror}") from fault
                found = await self._checked(process, output)
                return found
            finally:
                self._looking = None
                self._looks.note(recipe, good=_found_good(found))
                os.close(output)
                file.unlink(missing_ok=True)

    async def _checked(self, process: RunProcess, output: int) -> Checked:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.check_seconds
        late = loop.call_at(end, process.kill)
        found: Checked | None = None
        try:
            with suppress(*NONSENSE):  # an end without a word
                async for messages in process.messages():
                    found = next((Checked.of(message) for message in messages if "checked" in message), found)
        finally:
            late.cancel()
            code = await asyncio.shield(process.end())
        if found is None and self.closing:
            raise shutting_down()
        if found is None:
            ended = self._too_late if loop.time() >= end else how(code)
            problems = [Problem(f"the look at the recipe ended {ended}")]
            if said := last_lines(output, 0, _FEW):
                problems.append(Problem(f"the last lines of its log:\n{said}"))
            raise LimbeckError(Reason.RUN_CRASHED, problems=problems)
        return found

    async def close(self, grace: float) -> None:
        """End all processes, within `grace` seconds where they can go on. Their runs go on with the next server."""
        self.closing = True
        for record in list(self._ledger.records.values()):
            if not record.want:
                self.stop(record, "server")
        if self._tasks and (await asyncio.wait(self._tasks, timeout=grace))[1]:
            late = [record.process for record in self._ledger.records.values()]
            for process in (*late, self._looking):  # runs that are to be looked at wait for the end of that look
                if process is not None:
                    process.kill()
        while self._tasks:  # a run that ends lets old ones be removed
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _found_good(checked: Checked | None) -> bool:
    """Whether a look found nothing wrong, by what its process said."""
    return checked is not None and checked.error is None


def _later(record: Record) -> None:
    """Try a run again, but not at once."""
    record.not_before = time.monotonic() + LOCKED_SECONDS


def _kill_late(record: Record, process: RunProcess) -> None:
    record.killed = True
    process.kill()


def _crashed(text: str) -> LimbeckError:
    return LimbeckError(Reason.RUN_CRASHED, problems=[Problem(text)])


def not_training(record: Record) -> LimbeckError:
    """There is no training whose checkpoint could be saved."""
    hint = None if record.state in ENDED else "ask while it is training"
    message = f"it is {name_of(record.state)}: a checkpoint can be saved of a run that trains"
    return LimbeckError(Reason.RUN_STATE, problems=[Problem(message, field="run_id", hint=hint)])
