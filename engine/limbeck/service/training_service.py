"""limbeck.v1.TrainingService: which call goes where, and what a request may hold."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import grpc

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting.artifacts import PIECE, Digests, OpenFile, find, open_file
from limbeck.service.auth import Access
from limbeck.service.calls import Calls
from limbeck.service.config import Timing
from limbeck.service.gate import CALL
from limbeck.service.metrics import Metrics
from limbeck.service.quotas import Clients
from limbeck.service.translate import parse
from limbeck.service.watch import Events, watch
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import RunState

SERVICE = pb.DESCRIPTOR.services_by_name["TrainingService"].full_name
MOST_RECIPE = 1 << 20  # bytes
MOST_ID = 128  # characters of a request's id
MOST_KNOBS = 1000
MOST_PAGE = 200  # runs
AT_REST = {
    RunState.RUN_STATE_SUCCEEDED,
    RunState.RUN_STATE_PAUSED,
    RunState.RUN_STATE_CANCELLED,
    RunState.RUN_STATE_FAILED,
}
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Runs(Protocol):
    """What keeps the runs: `limbeck.hosting.host.RunHost`."""

    async def validate(self, recipe: str) -> pb.ValidateRecipeResponse: ...
    async def create(self, recipe: str, request_id: str, owner: str, restart: pb.RestartPolicy) -> pb.Run: ...
    def get(self, run_id: str) -> pb.Run: ...
    def details(self, run_id: str) -> pb.GetRunResponse: ...
    def list(self, states: Any, size: int, token: str) -> pb.ListRunsResponse: ...
    async def pause(self, run_id: str) -> pb.Run: ...
    async def resume(self, run_id: str) -> pb.Run: ...
    async def cancel(self, run_id: str) -> pb.Run: ...
    async def update_knobs(self, run_id: str, values: Mapping[str, float]) -> pb.Run: ...
    async def save_checkpoint(self, run_id: str) -> pb.Checkpoint: ...
    async def checkpoints(self, run_id: str) -> Any: ...
    def folder(self, run_id: str) -> Path: ...
    def history(self, run_id: str) -> Events: ...


class TrainingService:
    """The handlers. Requests and answers are bytes: events are passed on unread."""

    def __init__(self, runs: Runs, timing: Timing, access: Access, clients: Clients, metrics: Metrics) -> None:
        self._runs, self._timing, self._access, self._clients, self._metrics = runs, timing, access, clients, metrics
        self._digests = Digests()
        self.calls = Calls()

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        unary = {
            "ValidateRecipe": self.validate_recipe,
            "CreateRun": self.create_run,
            "GetRun": self.get_run,
            "ListRuns": self.list_runs,
            "CancelRun": self.cancel_run,
            "PauseRun": self.pause_run,
            "ResumeRun": self.resume_run,
            "UpdateKnobs": self.update_knobs,
            "SaveCheckpoint": self.save_checkpoint,
            "ListCheckpoints": self.list_checkpoints,
            "ListArtifacts": self.list_artifacts,
        }
        streams = {"WatchRun": self.watch_run, "DownloadArtifact": self.download_artifact}
        counted = self.calls.counted
        made = {name: grpc.unary_unary_rpc_method_handler(counted(handler)) for name, handler in unary.items()}
        made |= {name: grpc.unary_stream_rpc_method_handler(counted(handler)) for name, handler in streams.items()}
        return grpc.method_handlers_generic_handler(SERVICE, made)

    async def validate_recipe(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        asked = parse(pb.ValidateRecipeRequest, request)
        _refuse(_recipe(asked.recipe))
        return (await self._runs.validate(asked.recipe)).SerializeToString()

    async def create_run(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        asked = parse(pb.CreateRunRequest, request)
        _refuse(_created(asked))
        caller = CALL.get().caller
        owner = "" if caller.token is None else caller.name
        run = await self._runs.create(asked.recipe, asked.request_id, owner, asked.restart)
        return pb.CreateRunResponse(run=run).SerializeToString()

    async def get_run(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        return self._runs.details(_id(parse(pb.GetRunRequest, request))).SerializeToString()

    async def list_runs(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        asked = parse(pb.ListRunsRequest, request)
        _refuse(_listed(asked))
        page = self._runs.list(asked.states, asked.page_size, asked.page_token)
        return page.SerializeToString()

    async def cancel_run(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        run = await self._runs.cancel(_id(parse(pb.CancelRunRequest, request)))
        return pb.CancelRunResponse(run=run).SerializeToString()

    async def pause_run(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        run = await self._runs.pause(_id(parse(pb.PauseRunRequest, request)))
        return pb.PauseRunResponse(run=run).SerializeToString()

    async def resume_run(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        run = await self._runs.resume(_id(parse(pb.ResumeRunRequest, request)))
        return pb.ResumeRunResponse(run=run).SerializeToString()

    async def update_knobs(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        asked = parse(pb.UpdateKnobsRequest, request)
        if not 1 <= len(asked.values) <= MOST_KNOBS:
            count = f"{len(asked.values):,} values are given, 1 to {MOST_KNOBS:,} are allowed"
            _refuse([Problem(count, field="values")])
        run = await self._runs.update_knobs(_id(asked), dict(asked.values))
        return pb.UpdateKnobsResponse(run=run).SerializeToString()

    async def save_checkpoint(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        checkpoint = await self._runs.save_checkpoint(_id(parse(pb.SaveCheckpointRequest, request)))
        return pb.SaveCheckpointResponse(checkpoint=checkpoint).SerializeToString()

    async def list_checkpoints(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        found = await self._runs.checkpoints(_id(parse(pb.ListCheckpointsRequest, request)))
        return pb.ListCheckpointsResponse(checkpoints=found).SerializeToString()

    async def list_artifacts(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        run_id = _id(parse(pb.ListArtifactsRequest, request))
        folder, at_rest = self._runs.folder(run_id), self._runs.get(run_id).state in AT_REST
        artifacts = []
        for found in await asyncio.to_thread(find, folder, at_rest=at_rest):
            artifact = pb.Artifact(path=found.path, size=found.size)
            if found.settled:
                try:
                    file = open_file(folder, found.path)
                except LimbeckError:
                    continue  # it has gone meanwhile
                try:
                    artifact.size, artifact.sha256 = file.size, await self._digests.of(file)
                finally:
                    file.close()
            artifacts.append(artifact)
        return pb.ListArtifactsResponse(artifacts=artifacts).SerializeToString()

    async def watch_run(self, request: bytes, context: Any) -> None:
        """See the proto."""
        asked = parse(pb.WatchRunRequest, request)
        history = self._runs.history(_id(asked))
        after = asked.after_sequence if asked.HasField("after_sequence") else None
        send = self._sender("WatchRun", context)
        async with aclosing(watch(history, after, self._timing, self._check("WatchRun"))) as messages:
            async for message in messages:
                await send(message)

    async def download_artifact(self, request: bytes, context: Any) -> None:
        """See the proto."""
        asked = parse(pb.DownloadArtifactRequest, request)
        folder = self._runs.folder(_id(asked))
        if len(asked.sha256) not in (0, 32):
            _refuse([Problem(f"{len(asked.sha256)} bytes are no sha256, which has 32", field="sha256")])
        send = self._sender("DownloadArtifact", context)
        file = open_file(folder, asked.path)
        try:
            await self._download(file, asked, send)
        finally:
            file.close()

    async def _download(
        self, file: OpenFile, asked: pb.DownloadArtifactRequest, send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        digest = await self._digests.expected(file, asked.sha256)
        offset = asked.offset
        if offset > file.size:
            problem = Problem(f"offset is {offset:,}, the file has {file.size:,} bytes", field="offset")
            raise LimbeckError(Reason.CURSOR_INVALID, problems=[problem])
        started = pb.Artifact(path=file.path, size=file.size, sha256=digest)
        await send(pb.DownloadArtifactResponse(started=started).SerializeToString())
        check, checked = self._check("DownloadArtifact"), time.monotonic()
        while offset < file.size:
            data = await asyncio.to_thread(file.read, offset, min(PIECE, file.size - offset))
            offset += len(data)
            await send(pb.DownloadArtifactResponse(data=data).SerializeToString())
            if (now := time.monotonic()) - checked >= self._timing.poll:
                check()
                checked = now

    def _sender(self, method: str, context: Any) -> Callable[[bytes], Awaitable[None]]:
        """Count a stream of the client from now on; sends a message of it. Raises QUOTA_EXCEEDED."""
        call, sent = CALL.get(), self._metrics.sent.labels(method)
        call.held.enter_context(self._clients.stream(call.caller.name))

        async def send(message: bytes) -> None:
            await context.write(message)
            sent.inc(len(message))

        return send

    def _check(self, method: str) -> Callable[[], None]:
        """Raises what ends a long call: the server drains, or the token is good no longer."""
        caller = CALL.get().caller

        def check() -> None:
            self.calls.check()
            self._access.confirm(f"/{SERVICE}/{method}", caller)

        return check


def _id(asked: Any) -> str:
    """The run that is meant. Raises RUN_UNKNOWN for what is no run's id."""
    if not _RUN_ID.fullmatch(asked.run_id):
        problem = Problem(
            f"{asked.run_id[:80]!r} is no run here", field="run_id", hint="ListRuns names those there are"
        )
        raise LimbeckError(Reason.RUN_UNKNOWN, problems=[problem])
    return str(asked.run_id)


def _refuse(problems: Any) -> None:
    """Raise REQUEST_INVALID with all problems, where there are any."""
    if found := list(problems):
        raise LimbeckError(Reason.REQUEST_INVALID, problems=found)


def _created(asked: pb.CreateRunRequest) -> Iterator[Problem]:
    yield from _recipe(asked.recipe)
    length = len(asked.request_id)
    if not 1 <= length <= MOST_ID:
        yield Problem(f"has {length:,} characters, 1 to {MOST_ID} are allowed", field="request_id")
    if asked.restart not in pb.RestartPolicy.values():
        yield Problem(f"{asked.restart} is no RestartPolicy", field="restart")


def _recipe(text: str) -> Iterator[Problem]:
    size = len(text.encode())
    if not size:
        yield Problem("is empty: it is the text of a recipe", field="recipe")
    if size > MOST_RECIPE:
        yield Problem(f"has {size:,} bytes, {MOST_RECIPE:,} are allowed", field="recipe")


def _listed(asked: pb.ListRunsRequest) -> Iterator[Problem]:
    if asked.page_size > MOST_PAGE:
        yield Problem(f"is {asked.page_size:,}, up to {MOST_PAGE} are allowed", field="page_size")
    for state in sorted(set(asked.states) - (set(RunState.values()) - {RunState.RUN_STATE_UNSPECIFIED}))[:20]:
        yield Problem(f"{state} is no state of a run", field="states")
