"""A training service that does what a test tells it, faults included."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from limbeck.errors import LimbeckError, Reason
from limbeck.service.translate import refuse
from limbeck.v1 import plugin_service_pb2 as plugin_pb
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event, Metrics, RunState, StateChanged
from limbeck.v1.plugin_service_pb2_grpc import PluginServiceServicer, add_PluginServiceServicer_to_server
from limbeck.v1.training_service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server

from .scripted import Threaded

RUN = "0123456789abcdef"
UNARY = {
    "ValidateRecipe": pb.ValidateRecipeResponse,
    "CreateRun": pb.CreateRunResponse,
    "GetRun": pb.GetRunResponse,
    "ListRuns": pb.ListRunsResponse,
    "CancelRun": pb.CancelRunResponse,
    "PauseRun": pb.PauseRunResponse,
    "ResumeRun": pb.ResumeRunResponse,
    "UpdateKnobs": pb.UpdateKnobsResponse,
    "SaveCheckpoint": pb.SaveCheckpointResponse,
    "ListCheckpoints": pb.ListCheckpointsResponse,
    "ListArtifacts": pb.ListArtifactsResponse,
}


def run_message(state: str = "training", run_id: str = RUN, **more: Any) -> pb.Run:
    run = pb.Run(run_id=run_id, output="runs/mine", state=RunState.Value(f"RUN_STATE_{state.upper()}"), **more)
    run.created.FromSeconds(1_700_000_000)
    run.since.FromSeconds(1_700_000_060)
    return run


def event(sequence: int, state: str | None = None, **more: Any) -> Event:
    """Event `sequence`: metrics that tell its number, or a state."""
    said: dict[str, Any] = {"metrics": Metrics(values={"loss": float(sequence)})}
    if state is not None:
        said = {"state_changed": StateChanged(state=RunState.Value(f"RUN_STATE_{state.upper()}"), **more)}
    made = Event(sequence=sequence, attempt=1, step=sequence, run_id=RUN, **said)
    made.time.FromSeconds(1_700_000_000 + sequence % 1000)
    return made


def events(*made: Event | int) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(events=pb.Events(events=[event(one) if isinstance(one, int) else one for one in made]))


def alive(last: int = 0) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(alive=pb.WatchAlive(last_sequence=last))


class Runs(TrainingServiceServicer, PluginServiceServicer):
    """Answers of its `answers`; a Reason or a status there refuses the call. `watches`: a script for each WatchRun.

    A script is a list of responses, of Reasons and statuses to end the call with, and of numbers: seconds to wait. The
    last one serves all later calls.
    """

    def __init__(self, *watches: Sequence[Any]) -> None:
        self.watches = list(watches) or [[]]
        self.answers: dict[str, Any] = {
            name: kind(run=run_message()) if "run" in kind.DESCRIPTOR.fields_by_name else kind()
            for name, kind in UNARY.items()
        }
        self.requests: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.growing: set[str] = set()
        self.download: Callable[[Any, Any], AsyncIterator[Any]] = self.sending()

    def asked(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        self.requests.append((method, request))
        self.metadata.append(dict(context.invocation_metadata()))
        answer = self.answers[method]
        if callable(answer):
            answer = await answer(request, context)
        await self.refuse(answer, context)
        return answer

    async def refuse(self, what: Any, context: Any) -> None:
        if isinstance(what, Reason):
            await refuse(context, LimbeckError(what))
        elif isinstance(what, LimbeckError):
            await refuse(context, what)
        elif isinstance(what, grpc.StatusCode):
            await context.abort(what, "as the test wants")

    async def ListPlugins(self, request: Any, context: Any) -> Any:
        return await self.answer("ListPlugins", request, context)

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(("WatchRun", request))
        self.metadata.append(dict(context.invocation_metadata()))
        for step in self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]:
            await self.refuse(step, context)
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    # ------------------------------------------------------------------------------------------------------- files

    def keep(self, files: dict[str, bytes], growing: Sequence[str] = ()) -> None:
        """Serve these files."""
        self.files, self.growing = dict(files), set(growing)
        self.answers["ListArtifacts"] = pb.ListArtifactsResponse(
            artifacts=[
                pb.Artifact(
                    path=path,
                    size=len(content),
                    sha256=b"" if path in growing else hashlib.sha256(content).digest(),
                )
                for path, content in sorted(files.items())
            ]
        )

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(("DownloadArtifact", request))
        async for response in self.download(request, context):
            yield response

    def sending(self, *most: int, piece: int = 1000) -> Callable[[Any, Any], AsyncIterator[Any]]:
        """Send files, in pieces. The first calls are lost after so many bytes of `most`."""
        left = list(most)

        async def send(request: Any, context: Any) -> AsyncIterator[Any]:
            content = self.files[request.path]
            digest = hashlib.sha256(content).digest()
            if request.sha256 and request.sha256 != digest:
                await self.refuse(Reason.STORE_DAMAGED, context)
            yield pb.DownloadArtifactResponse(started=pb.Artifact(path=request.path, size=len(content), sha256=digest))
            end = request.offset + left.pop(0) if left else len(content)
            for at in range(request.offset, min(end, len(content)), piece):
                yield pb.DownloadArtifactResponse(data=content[at : min(at + piece, end)])
            if end < len(content):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "as the test wants")

        return send


def _unary(name: str) -> Any:
    async def method(self: Runs, request: Any, context: Any) -> Any:
        return await self.answer(name, request, context)

    return method


for _name in UNARY:
    setattr(Runs, _name, _unary(_name))


@contextmanager
def hosting(runs: Runs) -> Iterator[str]:
    """A server of its own thread; its address."""
    runs.answers.setdefault("ListPlugins", plugin_pb.ListPluginsResponse())
    thread = Threaded()

    async def start() -> tuple[Any, str]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_TrainingServiceServicer_to_server(runs, server)
        add_PluginServiceServicer_to_server(runs, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"

    server, address = thread.run(start())
    try:
        yield address
    finally:
        thread.run(server.stop(0))
        thread.close()
