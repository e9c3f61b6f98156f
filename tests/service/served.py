"""A server in the test's own event loop, and a stand-in for a teacher's host: a test decides what is answered, when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from limbeck.errors import LimbeckError
from limbeck.interfaces import CAPABILITIES, TeacherInfo
from limbeck.recipe import Bound
from limbeck.service import server as server_module
from limbeck.service.config import ServeConfig
from limbeck.service.server import Server
from limbeck.signals.messages import error_of, teacher_message
from limbeck.v1 import error_pb2
from limbeck.v1 import teacher_service_pb2 as pb
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub

INFO = TeacherInfo(
    name="scripted",
    vocab_size=300,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    max_length=1 << 20,
    capabilities=frozenset(CAPABILITIES),
    eos_ids=(1,),
    hidden_size=8,
    num_layers=2,
)


class Lane:
    waiting = batches = tokens = 0


class ScriptedHost:
    """Answers nothing by itself: `calls` are what it was asked, `answer` and `fail` are the test's."""

    def __init__(self, name: str, bound: Any = None, **more: Any) -> None:
        self.name, self.info, self.state = name, INFO, "ready"
        self.calls: list[tuple[str, list[int], bool]] = []  # client, item ids, alone
        self.sinks: dict[int, Any] = {}
        self.cancelled: list[list[int] | None] = []
        self.error: LimbeckError | None = None
        self.ready = asyncio.Event()
        self.ready.set()
        self.lanes = {"score": Lane(), "generate": Lane()}
        self.restarts = 0
        self.phase, self.phase_seconds = "", 0.0
        self.closed = False
        self.at_once = False  # answer everything by itself

    @property
    def message(self) -> pb.Teacher:
        message = teacher_message(self.info)
        message.name, message.state = self.name, pb.Teacher.STATE_READY
        return message

    async def start(self) -> None:
        await self.ready.wait()

    async def wait_ready(self) -> None:
        await self.ready.wait()
        if self.error is not None:
            raise self.error

    def score(self, client: str, want: pb.Want, items: Sequence[pb.ScoreItem], sink: Any, *, alone: bool) -> None:
        self._asked(client, items, sink, alone)

    def generate(self, client: str, sampling: pb.Sampling, prompts: Sequence[pb.Prompt], sink: Any) -> None:
        self._asked(client, prompts, sink, False)

    def _asked(self, client: str, items: Sequence[Any], sink: Any, alone: bool) -> None:
        self.calls.append((client, [item.item_id for item in items], alone))
        self.sinks.update((item.item_id, sink) for item in items)
        if self.at_once:
            for item in items:
                asyncio.get_running_loop().call_soon(self.answer, item.item_id, 1)

    def cancel(self, sink: Any, item_ids: Sequence[int] | None = None) -> None:
        self.cancelled.append(None if item_ids is None else list(item_ids))

    async def head(self) -> AsyncGenerator[bytes, None]:
        yield pb.GetOutputHeadResponse(chunk=pb.Chunk(offset=0, data=b"head")).SerializeToString()

    async def close(self) -> None:
        self.closed = True

    # ---------------------------------------------------------------------------------------------------- for the test

    @property
    def asked(self) -> list[int]:
        """Items asked so far, in order."""
        return [item_id for _, ids, _ in self.calls for item_id in ids]

    def answer(self, item_id: int, cost: int, *, last: bool = True) -> None:
        fragment = pb.Fragment(item_id=item_id, cost=cost, last=last)
        self.sinks[item_id].answer(item_id, pb.ScoreResponse(fragment=fragment).SerializeToString(), cost, last)

    def complete(self, item_id: int) -> None:
        completion = pb.Completion(item_id=item_id, ids=np.array([7], "<i4").tobytes())
        self.sinks[item_id].answer(item_id, pb.GenerateResponse(completion=completion).SerializeToString(), 4, True)

    def fail(self, item_id: int, error: LimbeckError) -> None:
        self.sinks[item_id].failed(item_id, error)


@dataclass
class Served:
    """A running server: its stub, and the stand-in of its teacher `t`."""

    server: Server
    stub: TeacherServiceStub
    channel: grpc.aio.Channel
    address: str
    host: ScriptedHost


def ids(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


def item(item_id: int, tokens: int = 4, *, n: int = 2, **more: Any) -> pb.ScoreItem:
    return pb.ScoreItem(
        item_id=item_id, ids=ids(*(5 + place % 200 for place in range(tokens))), first_row=0, n=n, **more
    )


async def soon(condition: Callable[[], bool]) -> None:
    """Wait until something of the server is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def error_from(call: Any) -> tuple[grpc.StatusCode, LimbeckError]:
    """How a call ended: its status, and the error of the catalogue in its details."""
    if hasattr(call, "read"):
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    code, details, trailers = await call.code(), await call.details(), await call.trailing_metadata()
    assert sum(len(key) + len(value) for key, value in trailers) < 7 << 10
    raw = next(value for key, value in trailers if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (code.value[0], details)
    error = error_pb2.Error()
    assert status.details[0].Unpack(error)
    return code, error_of(error)


@asynccontextmanager
async def serving(
    bound: Bound, *, host: type | None = ScriptedHost, runs: Any = None, **more: Any
) -> AsyncIterator[Served]:
    """A server with the teacher `t`: the stand-in, or with host=None a real worker. `runs`: a stand-in for its runs."""
    config = ServeConfig(teachers={"t": bound}, **({"listen": "127.0.0.1:0"} | more))
    former = server_module.TeacherHost, server_module.RunHost
    try:
        server_module.TeacherHost = host or server_module.TeacherHost
        if runs is not None:
            server_module.RunHost = lambda *args, **more: runs
        server = Server(config)
    finally:
        server_module.TeacherHost, server_module.RunHost = former
    address = await server.start()
    channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        yield Served(server, TeacherServiceStub(channel), channel, address, server.hosts["t"])
    finally:
        await channel.close()
        await server.stop(0.0)


@asynccontextmanager
async def serving_signals(folder: Path, *, name: str = "d", **more: Any) -> AsyncIterator[TeacherServiceStub]:
    """A server with the signals of a run's folder."""
    server = Server(ServeConfig(signals={name: folder}, listen="127.0.0.1:0", **more))
    channel = grpc.aio.insecure_channel(await server.start(), options=[("grpc.enable_http_proxy", 0)])
    try:
        yield TeacherServiceStub(channel)
    finally:
        await channel.close()
        await server.stop(0.0)
