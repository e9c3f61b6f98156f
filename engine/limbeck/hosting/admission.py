"""How a run comes into being: refused at once, or on disk when its client is answered."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import limbeck
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import FolderLock, disk_errors, write_atomic, write_json
from limbeck.hosting.knobs import knobs_of
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.record import ENDED, WAITING, WORKING, Record, now
from limbeck.plugins import Registry
from limbeck.runs.folder import IDENTITY, Identity, check_folder, read_identity
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb


class Admission:
    """Takes recipes. Row of the index first, then the folder: what a server that died had begun is found by its row."""

    def __init__(self, ledger: Ledger, limits: RunLimits, registry: Registry) -> None:
        self._ledger, self._limits, self._registry = ledger, limits, registry
        self._lock = asyncio.Lock()

    async def create(self, recipe: str, request_id: str, owner: str, restart: pb.RestartPolicy) -> Record:
        """The run of a request.

        Raises RECIPE_INVALID, RUN_EXISTS, FOLDER_NOT_OURS, QUOTA_EXCEEDED, DISK_FULL.
        """
        if (known := await self._known(owner, request_id, recipe)) is not None:
            return known
        run_id = uuid4().hex
        read = await self._ledger.workspace.load_aside(recipe, self._registry, run_id)
        policy = restart or pb.RESTART_POLICY_RESUME
        output = self._ledger.workspace.public.file(str(read.output))
        run = pb.Run(run_id=run_id, output=output, owner=owner, restart=policy, knobs=knobs_of(read))
        run.created.CopyFrom(now())
        record = Record(0, request_id, run)
        record.enter(ev.RUN_STATE_CREATED, run.created)
        del record.states.states[:]  # its history is to tell it
        async with record.lock:
            async with self._lock:
                if (known := await self._known(owner, request_id, recipe)) is not None:  # it was asked twice at once
                    return known
                self._refuse_taken(read.output)
                refuse_full(self._ledger, self._limits, owner, new=True)
                self._ledger.add(record)  # before its row: whoever finds that is not to make another record of it
                try:
                    await self._ledger.index.add(record, recipe)
                except BaseException:
                    self._ledger.records.pop(run_id)
                    raise
            try:
                await self.establish(record)
            except (LimbeckError, OSError) as error:
                try:
                    await asyncio.to_thread(_undo, read.output, self._ledger.workspace.recipe_file(run_id), run_id)
                    await self._ledger.index.remove(record)
                finally:  # last: whoever asks for it meanwhile must not find it in the index alone
                    self._ledger.records.pop(run_id)
                raise self._told(error) from None
        return record

    async def establish(self, record: Record) -> None:
        """Make what a new run has on disk, as far as it is not there. Raises DISK_FULL, FOLDER_NOT_OURS, RUN_LOCKED."""
        workspace, folder = self._ledger.workspace, self._ledger.folder(record)
        recipe = self._ledger.index.recipe(record.run_id)
        await asyncio.to_thread(_lay, workspace.recipe_file(record.run_id), recipe, folder, record)
        await self._ledger.follow(record)
        if not record.run.last_sequence:
            await self._ledger.say(record, ev.RUN_STATE_CREATED, must=True)
        if record.state == ev.RUN_STATE_CREATED:
            await self._ledger.say(record, ev.RUN_STATE_VALIDATING, must=True)

    async def _known(self, owner: str, request_id: str, recipe: str) -> Record | None:
        """The run that a request has made before. Raises RUN_EXISTS where it came with another recipe."""
        while (found := self._ledger.index.asked(owner, request_id)) is not None:
            run_id, text = found
            if text != recipe:
                message = "a request of this id, with another recipe, has made a run already"
                problem = Problem(message, field="request_id", hint="give each new run a request_id of its own")
                raise LimbeckError(Reason.RUN_EXISTS, problems=[problem])
            record = self._ledger.find(run_id)
            async with record.lock:  # it may be just made, and be taken back where that fails
                pass
            if record.expired or run_id in self._ledger.records:
                return record
        return None

    def _refuse_taken(self, output: Path) -> None:
        """Raise RUN_EXISTS where another run has the folder, one in it or one around it; FOLDER_NOT_OURS."""
        taken = None
        for other in self._ledger.records.values():
            folder = self._ledger.folder(other)
            if output == folder or output in folder.parents or folder in output.parents:
                taken = "another run has this folder" if output == folder else f"the run in {other.run.output} is there"
        if taken is None:
            try:
                taken = "another run has this folder" if check_folder(output) is not None else None
            except LimbeckError as error:
                raise self._ledger.workspace.error(error) from None
        if taken is not None:
            problem = Problem(taken, file="recipe", field="output", hint="give another `output`")
            raise LimbeckError(Reason.RUN_EXISTS, problems=[problem])

    def _told(self, error: Exception) -> LimbeckError:
        if isinstance(error, LimbeckError):
            return self._ledger.workspace.error(error)
        strerror = getattr(error, "strerror", None) or type(error).__name__
        problem = Problem(f"the folder cannot be made: {strerror}", file="recipe", field="output")
        return LimbeckError(Reason.RECIPE_INVALID, problems=[problem])


def refuse_full(ledger: Ledger, limits: RunLimits, owner: str, *, new: bool = False) -> None:
    """Raise QUOTA_EXCEEDED where there is no room for one more run that waits."""
    records = list(ledger.records.values())
    own = sum(one.run.owner == owner and one.state in WAITING | WORKING for one in records)
    problems = []
    if (waiting := len(ledger.waiting())) >= limits.queue:
        problems.append(Problem(f"{waiting} runs wait already, allowed are {limits.queue}", hint="try again later"))
    if own >= limits.per_client:
        hint = "wait until one has ended, or pause or cancel one"
        message = f"{own} runs of this client wait or work already, allowed are {limits.per_client}"
        problems.append(Problem(message, hint=hint))
    if new and (open_ := sum(one.state not in ENDED for one in records)) >= limits.unfinished:
        message = f"{open_} runs have not ended, allowed are {limits.unfinished}"
        problems.append(Problem(message, hint="cancel runs that are paused and not wanted any more"))
    if problems:
        raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=problems)


def _lay(file: Path, recipe: str, folder: Path, record: Record) -> None:
    """The recipe's file, the folder, and in it whose it is."""
    if not file.is_file():
        write_atomic(file, recipe)
    identity = check_folder(folder)
    if identity is not None and identity.run_id == record.run_id:
        return
    with disk_errors(folder), FolderLock(folder):
        found = check_folder(folder)  # again: only now nobody else can begin here
        if found is not None:
            problem = Problem("another run has this folder", file=str(folder), field="output")
            raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem])
        created = datetime.fromtimestamp(record.run.created.ToNanoseconds() / 1e9, UTC).isoformat()
        ours = Identity(record.run_id, limbeck.__version__, created, os.path.relpath(file, folder), str(file))
        write_json(folder / IDENTITY, asdict(ours))


def _undo(folder: Path, file: Path, run_id: str) -> None:
    """Take back what was made of a run that could not be: nothing of it is of use."""
    file.unlink(missing_ok=True)
    with suppress(LimbeckError, OSError):
        identity = read_identity(folder)
        if identity is not None and identity.run_id == run_id:
            (folder / "events.jsonl").unlink(missing_ok=True)
            (folder / IDENTITY).unlink()
        (folder / ".lock").unlink()
        folder.rmdir()
