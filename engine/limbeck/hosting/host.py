"""The runs of a server: made, watched, steered and kept."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import FolderLock
from limbeck.hosting.admission import Admission
from limbeck.hosting.channel import Checked
from limbeck.hosting.checkpoints import checkpoints_of
from limbeck.hosting.history import History
from limbeck.hosting.index import Index
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.process import COMMAND
from limbeck.hosting.record import WORKING, Record
from limbeck.hosting.recovery import Recovery, free
from limbeck.hosting.retention import Retention
from limbeck.hosting.steering import Steering
from limbeck.hosting.works import Works
from limbeck.hosting.workspace import HIDDEN, Workspace
from limbeck.plugins import load_plugins
from limbeck.signals.messages import problem_message
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.error_pb2 import Error

PAGE, PAGE_BYTES = 50, 1 << 20  # runs, and what they may take: clients take messages of 4 MiB
MOST_LOOKS = 16  # at recipes, that wait
SWEEP = 10  # looks at what somebody watches, for each look at all runs

__all__ = ["RunHost", "RunLimits"]


class RunHost:
    """Hosts runs in a workspace, which it has for itself. Belongs to one event loop.

    Every method that takes a run's id raises RUN_UNKNOWN. `command` starts a run's process: another one is for tests.
    """

    def __init__(
        self,
        workspace: Workspace,
        limits: RunLimits,
        *,
        log: logging.Logger,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._workspace, self._limits, self._log, self._command = workspace, limits, log, command
        self._registry = load_plugins()
        self._held = AsyncExitStack()  # what is let go of at the end
        self._looks = 0
        self._patrol: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def start(self) -> None:
        """Open the index, bring what a former server left to order, and go on with what it had not done.

        Raises SERVER_INVALID where another server has this workspace, its own folder there is a link, or its index
        cannot be used. Whatever it raises, nothing stays open.
        """
        try:
            await self._start()
        except BaseException:
            await self._held.aclose()
            raise
        self._works.pump()
        self._patrol = asyncio.ensure_future(self._look_around())

    async def _start(self) -> None:
        hidden = self._workspace.root / HIDDEN
        if hidden.is_symlink():  # a run's process may have put it there
            problem = Problem(
                "it is a link, and must be a folder of the server's own", file=str(hidden), hint="remove the link"
            )
            raise LimbeckError(Reason.SERVER_INVALID, problems=[problem])
        hidden.mkdir(mode=0o700, exist_ok=True)
        try:
            self._held.callback(FolderLock(hidden).release)
        except LimbeckError as error:
            problem = Problem("another server has this workspace", file=str(self._workspace.root))
            raise LimbeckError(Reason.SERVER_INVALID, problems=[problem]) from error
        self._index = Index(hidden / "runs.sqlite")
        self._held.push_async_callback(self._index.close)
        self._held.callback(self._workspace.close)
        self._ledger = Ledger(self._workspace, self._index, self._log)
        self._retention = Retention(self._ledger, self._limits)
        self._works = Works(self._ledger, self._limits, self._retention, self._command)
        self._admission = Admission(self._ledger, self._limits, self._registry)
        self._steering = Steering(self._ledger, self._works, self._limits)
        self._recovery = Recovery(self._ledger, self._admission, self._works, self._retention)
        await self._recovery.run()
        await self._retention.apply()

    async def close(self, grace: float) -> None:
        """End the processes of all runs, within `grace` seconds where they can go on, and let go of the workspace."""
        if self._patrol is None:
            return
        self._closing.set()
        await self._patrol  # not cancelled: what it is just writing would be written again
        await self._works.close(grace)
        for record in list(self._ledger.records.values()):
            if record.dirty:
                await self._ledger.save(record)
        await self._held.aclose()

    # -------------------------------------------------------------------------------------------------------- recipes

    async def validate(self, recipe: str) -> pb.ValidateRecipeResponse:
        """What is to be said of a recipe. Raises QUOTA_EXCEEDED, RUN_CRASHED, DISK_FULL, SERVER_UNAVAILABLE."""
        try:
            await self._workspace.load_aside(recipe, self._registry, None)
        except LimbeckError as error:
            if error.reason is Reason.QUOTA_EXCEEDED:  # says nothing of the recipe
                raise
            return pb.ValidateRecipeResponse(error=_whole(error))
        if self._looks >= MOST_LOOKS:
            problem = Problem(f"{self._looks} recipes wait to be looked at already", hint="try again later")
            raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[problem])
        self._looks += 1
        try:
            with self._public():
                found = await self._works.check(recipe)
        finally:
            self._looks -= 1
        return _response(self._workspace, found)

    async def create(self, recipe: str, request_id: str, owner: str, restart: pb.RestartPolicy) -> pb.Run:
        """The run that a client's request makes, or has made. It is on disk.

        Raises RECIPE_INVALID and PLUGIN_UNKNOWN with every problem, RUN_EXISTS, FOLDER_NOT_OURS,
        QUOTA_EXCEEDED, DISK_FULL.
        """
        with self._public():
            record = await self._works.whole(self._admission.create(recipe, request_id, owner, restart))
        self._works.pump()
        return self._ledger.message(record)

    # ----------------------------------------------------------------------------------------------------------- runs

    def get(self, run_id: str) -> pb.Run:
        """A run, as it is now."""
        return self._ledger.message(self._ledger.find(run_id))

    def details(self, run_id: str) -> pb.GetRunResponse:
        """A run with its recipe and its states."""
        record = self._ledger.find(run_id)
        recipe = self._index.recipe(run_id)
        return pb.GetRunResponse(run=self._ledger.message(record), recipe=recipe, states=record.states.states)

    def list(self, states: Collection[ev.RunState], size: int, token: str) -> pb.ListRunsResponse:
        """A page of runs, the newest first: of pages that follow each other no run is missed or told twice.

        `size`: runs at most, 0 for 50; fewer where they say much. Raises REQUEST_INVALID for a token never given out.
        """
        size = size or PAGE
        rows = self._index.page(_number(token), set(states), size + 1)
        known = [self._ledger.records.get(row.run_id) or row for row in rows[:size]]
        for record in known:
            if record.history is None:
                self._ledger.add(record)
        page, room = pb.ListRunsResponse(), PAGE_BYTES
        for record in known:
            message = self._ledger.message(record)
            room -= message.ByteSize()
            if room < 0 and page.runs:
                break
            page.runs.append(message)
        if len(rows) > len(page.runs):
            page.next_page_token = _token(rows[len(page.runs) - 1].number)
        return page

    async def pause(self, run_id: str) -> pb.Run:
        """Let a run rest. Raises RUN_STATE, DISK_FULL."""
        record = self._ledger.find(run_id)
        with self._public():
            await self._works.whole(self._steering.pause(record))
        return self._ledger.message(record)

    async def resume(self, run_id: str) -> pb.Run:
        """Let a run go on. Raises RUN_STATE, QUOTA_EXCEEDED, DISK_FULL."""
        record = self._ledger.find(run_id)
        with self._public():
            await self._works.whole(self._steering.resume(record))
        return self._ledger.message(record)

    async def cancel(self, run_id: str) -> pb.Run:
        """End a run. Raises RUN_STATE, DISK_FULL."""
        record = self._ledger.find(run_id)
        with self._public():
            await self._works.whole(self._steering.cancel(record))
        return self._ledger.message(record)

    async def update_knobs(self, run_id: str, values: Mapping[str, float]) -> pb.Run:
        """Give knobs other values. Raises KNOB_INVALID with every problem, RUN_STATE, QUOTA_EXCEEDED, DISK_FULL."""
        record = self._ledger.find(run_id)
        with self._public():
            await self._works.whole(self._steering.update_knobs(record, values))
        return self._ledger.message(record)

    async def save_checkpoint(self, run_id: str) -> pb.Checkpoint:
        """Save a checkpoint; returns when it is whole. Raises RUN_STATE, QUOTA_EXCEEDED, DISK_FULL."""
        with self._public():
            return await self._steering.save_checkpoint(self._ledger.find(run_id))

    async def checkpoints(self, run_id: str) -> Sequence[pb.Checkpoint]:
        """A run's complete checkpoints, the oldest first."""
        record = self._ledger.find(run_id)
        return [] if record.expired else await asyncio.to_thread(checkpoints_of, self._ledger.folder(record))

    def folder(self, run_id: str) -> Path:
        """Where a run's files are. Raises ARTIFACT_UNKNOWN where they are not kept any more."""
        record = self._ledger.find(run_id)
        if record.expired:
            problem = Problem("the run's folder is gone", field="run_id")
            raise LimbeckError(Reason.ARTIFACT_UNKNOWN, problems=[problem])
        return self._ledger.folder(record)

    def history(self, run_id: str) -> History:
        """A run's events."""
        return self._ledger.history(self._ledger.find(run_id))

    @contextmanager
    def _public(self) -> Iterator[None]:
        """Errors as clients see them: without paths of this machine."""
        try:
            yield
        except LimbeckError as error:
            raise self._workspace.error(error) from None

    # ------------------------------------------------------------------------------------- what changes on its own

    async def _look_around(self) -> None:
        """Find what other processes have written, and do what a full disk kept from being done."""
        looks = 0
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll):
                    await self._closing.wait()
                    return
            looks += 1
            for record in list(self._ledger.records.values()):
                try:
                    await self._look(record, sweep=looks % SWEEP == 0)
                except Exception:
                    self._ledger.log(record).exception("a look at the run failed")
            self._works.pump()

    async def _look(self, record: Record, *, sweep: bool) -> None:
        ledger, history = self._ledger, self._ledger.history(record)
        if record.process is not None or record.lock.locked():
            if sweep and record.dirty:  # so that a server that follows one that was killed has little to read
                await ledger.save(record)
            return
        if sweep and not history.watchers:
            history.rest()
        if not (history.watchers or record.unsaid.events or record.dirty or sweep):
            return
        async with record.lock:
            if record.process is not None or record.expired:
                return
            if not ledger.is_there(record):
                await ledger.leave(record)
                return
            with suppress(LimbeckError, OSError):
                await ledger.say_rest(record)
            with suppress(FileNotFoundError):
                if history.grown():
                    await ledger.follow(record)
                elif sweep and record.state in WORKING and free(ledger, record):
                    await self._recovery.lost(record)
            if record.dirty:
                await ledger.save(record)


def _number(token: str) -> int:
    """The number that a page's runs are below."""
    if not token:
        return 1 << 62
    try:
        return int(base64.b64decode(token, altchars=b"-_", validate=True).removeprefix(b"below "))
    except (ValueError, binascii.Error):
        problem = Problem("was never given out by this server", field="page_token")
        raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem]) from None


def _token(number: int) -> str:
    return base64.urlsafe_b64encode(b"below %d" % number).decode()


def _whole(error: LimbeckError) -> Error:
    """An error with every problem, however many: an answer has more room than the trailers of a call."""
    return Error(reason=str(error.reason), message=error.message, problems=map(problem_message, error.problems))


def _response(workspace: Workspace, found: Checked) -> pb.ValidateRecipeResponse:
    """What a look found, as clients see it."""
    response = pb.ValidateRecipeResponse(facts=json.dumps(workspace.values(dict(found.facts))))
    if found.error is not None:
        response.error.CopyFrom(_whole(workspace.error(found.error)))
    else:
        response.resolved = json.dumps(workspace.values(dict(found.resolved)))
    response.warnings.extend(problem_message(workspace.problem(one)) for one in found.warnings)
    return response
