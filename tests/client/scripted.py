"""A server that does what a test tells it, faults included. Its answers are known: see `target_of`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from limbeck.client.aio import AsyncClient
from limbeck.client.connection import Connection
from limbeck.client.link import Times
from limbeck.client.sync import Client
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, TeacherInfo, Want
from limbeck.service.translate import refuse
from limbeck.signals import Signal
from limbeck.signals.fragments import fragments
from limbeck.signals.messages import error_message, header_for, header_message, item_of, teacher_message, want_of
from limbeck.v1 import teacher_service_pb2 as pb
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server

INFO = TeacherInfo(
    name="scripted",
    vocab_size=1000,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    max_length=4096,
    capabilities=frozenset({"generate", "target", "hidden_states"}),
    eos_ids=(1,),
    hidden_size=1 << 15,
    num_layers=2,
)
TARGET = Want(target=True)


def items(count: int, tokens: int = 4, start: int = 0) -> list[ScoreItem]:
    return [ScoreItem(i, np.full(tokens, 7, np.int32), 0, tokens - 1) for i in range(start, start + count)]


def target_of(item: ScoreItem) -> npt.NDArray[np.float32]:
    return -(np.arange(item.n) + item.item_id + 1).astype(np.float32)


def signal_of(item: ScoreItem, want: Want) -> Signal:
    hidden = {layer: np.full((item.n, INFO.hidden_size or 0), item.item_id, np.float32) for layer in want.layers}
    return Signal(item.first_row, item.n, target=target_of(item) if want.target else None, hidden=hidden)


@dataclass
class Seen:
    """What a connection was told."""

    start: Any = None
    metadata: dict[str, str] = field(default_factory=dict)
    messages: list[list[int]] = field(default_factory=list)  # item ids
    alone: list[bool] = field(default_factory=list)
    granted: int = 0
    alive: int = 0
    cancelled: bool = False
    half_closed: bool = False

    @property
    def ids(self) -> list[int]:
        return [name for message in self.messages for name in message]


Reply = Callable[["Scripted", Seen, Any, Any], AsyncIterator[Any]]


class Scripted(TeacherServiceServicer):
    """Each call of Score takes the next of `scripts`; the last one serves all later calls."""

    def __init__(self, *scripts: Reply, limits: pb.Limits | None = None) -> None:
        self.scripts = list(scripts) or [answering()]
        self.seen: list[Seen] = []
        self.teacher = teacher_message(INFO)
        self.teacher.name, self.teacher.state = "t", pb.Teacher.STATE_READY
        self.teacher.limits.CopyFrom(limits or pb.Limits(tokens_in_flight=1 << 20, answer_bytes=1 << 30, streams=8))
        self.replies: dict[str, Callable[[Any, Any], Any]] = {}
        self.unary: list[Any] = []  # requests of GetTeacher

    async def GetTeacher(self, request: Any, context: Any) -> Any:
        self.unary.append(request)
        if "GetTeacher" in self.replies:
            return await self.replies["GetTeacher"](request, context)
        return pb.GetTeacherResponse(teacher=self.teacher)

    async def Score(self, requests: AsyncIterator[pb.ScoreRequest], context: Any) -> AsyncIterator[pb.ScoreResponse]:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        seen = Seen(metadata=dict(context.invocation_metadata()))
        self.seen.append(seen)
        first = await anext(requests)
        assert first.WhichOneof("kind") == "start"
        seen.start = first.start
        inbox: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            async for request in requests:
                kind = request.WhichOneof("kind")
                if kind == "items":
                    seen.messages.append([item.item_id for item in request.items.items])
                    seen.alone.append(request.items.alone)
                    inbox.put_nowait(request.items)
                elif kind == "grant":
                    seen.granted += request.grant.bytes
                    inbox.put_nowait(None)
                elif kind == "alive":
                    seen.alive += 1
            seen.half_closed = True
            inbox.put_nowait("end")

        listener = asyncio.create_task(listen())
        try:
            async for response in script(self, seen, inbox, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):  # the latter where an answer was just being sent
            seen.cancelled = True
            raise
        finally:
            listener.cancel()

    async def Generate(self, requests: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async for request in requests:
            if request.WhichOneof("kind") == "start":
                yield pb.GenerateResponse(started=pb.GenerateStarted(teacher=self.teacher))
            for prompt in request.prompts.prompts:
                turned = np.frombuffer(prompt.ids, "<i4")[::-1].tobytes()
                done = pb.Completion(
                    item_id=prompt.item_id, ids=turned, finish_reason=pb.Completion.FINISH_REASON_LENGTH
                )
                yield pb.GenerateResponse(completion=done)

    async def StreamSignals(self, request: Any, context: Any) -> AsyncIterator[pb.StreamSignalsResponse]:
        async for response in self.replies["StreamSignals"](request, context):
            yield response

    async def GetOutputHead(self, request: Any, context: Any) -> AsyncIterator[pb.GetOutputHeadResponse]:
        async for response in self.replies["GetOutputHead"](request, context):
            yield response

    # ---------------------------------------------------------------------------------------------------- for scripts

    def started(self, seen: Seen) -> pb.ScoreResponse:
        header = header_for(INFO, want_of(seen.start.want))
        message = pb.ScoreStarted(teacher=self.teacher, header=header_message(header) if header else None)
        return pb.ScoreResponse(started=message)


def answers(seen: Seen, message: pb.ScoreItem) -> list[pb.ScoreResponse]:
    want = want_of(seen.start.want)
    item = item_of(message, want)
    return [pb.ScoreResponse(fragment=f) for f in fragments(item, signal_of(item, want), want, INFO)]


def failed(item_id: int, reason: Reason, message: str = "as the test wants") -> pb.ScoreResponse:
    error = error_message(LimbeckError(reason, problems=[Problem(message)]))
    return pb.ScoreResponse(failed=pb.ItemFailed(item_id=item_id, error=error))


def answering(
    *,
    most: int | None = None,
    after: int = 0,
    then: Any = None,
    fail: dict[int, Reason] | None = None,
    twice: bool = False,
) -> Reply:
    """Answer `most` items in the order sent, wait until `after` have come in all, then do `then`.

    A call that ends while the client writes loses what it has not read (grpc/grpc#36066): at random, without `after`.

    `then`: a Reason to end the call with, a grpc.StatusCode without any details, "silence", or None to end it with OK.
    `fail`: items that fail instead.
    """

    async def script(server: Scripted, seen: Seen, inbox: Any, context: Any) -> AsyncIterator[Any]:
        yield server.started(seen)
        done = 0
        while most is None or done < most:
            got = await inbox.get()
            if got == "end":
                return
            for message in got.items if got is not None else ():
                if most is not None and done >= most:
                    break
                if fail and message.item_id in fail:
                    yield failed(message.item_id, fail[message.item_id])
                    continue
                done += 1
                for response in answers(seen, message):
                    yield response
        while len(seen.ids) < after:
            await inbox.get()
        if isinstance(then, Reason):
            await refuse(context, LimbeckError(then, problems=[Problem("as the test wants")]))
        elif isinstance(then, grpc.StatusCode):
            await context.abort(then, "as the test wants")
        elif then == "silence":
            await asyncio.Event().wait()

    return script


def crediting(server_log: list[int] | None = None) -> Reply:
    """Keep to the credit as a server must: begin an item with credit for it or 1 MiB of it, stop where none is left."""

    async def script(server: Scripted, seen: Seen, inbox: Any, context: Any) -> AsyncIterator[Any]:
        yield server.started(seen)
        sent, waiting, ended = 0, [], False
        while not (ended and not waiting):
            while waiting and seen.start.credit + seen.granted - sent > 0:
                response = waiting.pop(0)
                sent += response.fragment.cost
                if server_log is not None:
                    server_log.append(seen.start.credit + seen.granted - sent)
                yield response
            got = await inbox.get()
            ended = ended or got == "end"
            if got is not None and got != "end":
                waiting += [response for message in got.items for response in answers(seen, message)]

    return script


class Threaded:
    """An event loop in a thread, for servers beside a client without asyncio."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def listen(servicer: TeacherServiceServicer | None, credentials: Any = None) -> tuple[Any, str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        add_TeacherServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


@contextmanager
def serving(servicer: TeacherServiceServicer | None, credentials: Any = None) -> Iterator[str]:
    """A server of its own thread; its address."""
    thread = Threaded()
    server, address = thread.run(listen(servicer, credentials))
    try:
        yield address
    finally:
        thread.run(server.stop(0))
        thread.close()


def client_of(address: str, **times: float) -> Client:
    """A client whose times a test may shorten."""
    return Client(async_client_of(address, **times))


def async_client_of(address: str, **times: float) -> AsyncClient:
    return AsyncClient(Connection.of(address), Times(**times))
