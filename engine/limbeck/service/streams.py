"""The calls that compute: items in, answers out, each at its own pace.

A reader and a writer task a call. The reader takes items in and queues them at the teacher as far as credit and room
allow; answers come back to the stream as a sink; the writer sends them as the credit allows. No task waits for another
while it holds something that this one needs.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc

from limbeck.errors import LimbeckError, Problem, Reason, shutting_down
from limbeck.hosting.public import without_paths
from limbeck.interfaces import TeacherInfo
from limbeck.service.auth import Caller
from limbeck.service.config import Limits, Timing
from limbeck.service.host import TeacherHost
from limbeck.service.metrics import Metrics
from limbeck.service.quotas import Share, Use
from limbeck.service.requests import expect, invalid
from limbeck.service.translate import parse, wire_error
from limbeck.v1 import teacher_service_pb2 as pb

UNREAD = 1 << 20  # bytes of failures that a client may leave unread before nothing more is taken in
STRIDE = 64  # items that are checked in one go
Start = Any  # ScoreStart | GenerateStart


@dataclass(eq=False, slots=True)
class Item:
    """One that is not answered. `left`: bytes of its answer that are counted and not sent."""

    message: Any
    tokens: int
    size: int
    left: int = 0
    begun: bool = False
    group: Group | None = None  # with which it waits


@dataclass(eq=False, slots=True)
class Group:
    """Items that are begun together; `alone`: with nobody else's."""

    items: list[Item]
    alone: bool


@dataclass(frozen=True, slots=True)
class Desk:
    """What a stream works with."""

    find: Callable[[str], TeacherHost]
    describe: Callable[[TeacherHost], pb.Teacher]
    information: Callable[[TeacherHost], TeacherInfo]
    limits: Limits
    timing: Timing
    metrics: Metrics
    confirm: Callable[[str, Caller], None]


class Stream:
    """What Score and Generate share. Is the host's sink of its items."""

    method: ClassVar[str]
    request: ClassVar[type]
    response: ClassVar[type]

    def __init__(self, context: Any, caller: Caller, use: Use, desk: Desk) -> None:
        self._context, self._caller, self._use, self._desk = context, caller, use, desk
        self._items: dict[int, Item] = {}
        self._control: deque[bytes] = deque()  # what takes no credit
        self._told = 0  # bytes of it
        self._relief = asyncio.Event()
        self._out: deque[tuple[int, bytes, int, bool]] = deque()
        self._wake = asyncio.Event()
        self._share = Share(use, self._wake.set)
        self._half_closed = False
        self._draining = self._turned_away = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begun = False
        self._seen: TeacherInfo | None = None
        self._host: TeacherHost
        self._info: TeacherInfo
        self._teacher = ""

    # ------------------------------------------------------------------------------------------------- the host's side

    def answer(self, item_id: int, response: bytes, cost: int, last: bool) -> None:
        """A piece of an answer; of a dropped item it is dropped."""
        if item_id in self._items:
            self._out.append((item_id, response, cost, last))
            self._wake.set()

    def failed(self, item_id: int, error: LimbeckError) -> None:
        """An item that is not answered. What of it was not sent is void."""
        if item_id in self._items:
            self._forget(item_id)
            self._fail(item_id, error)

    # ----------------------------------------------------------------------------------------------- the server's side

    def drain(self) -> None:
        """Take in nothing more, finish what is under way, then end the call."""
        self._draining = True
        self._wake.set()
        if not self._begun:
            self.end(shutting_down())

    def end(self, error: LimbeckError) -> None:
        """End the call now."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def run(self) -> None:
        """Serve the call. Raises what ends it."""
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks += [asyncio.create_task(self._guard()), asyncio.create_task(self._begin())]
            await self._until(tasks[1], tasks[0])
            tasks += [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
            await self._until(tasks[2], tasks[3], tasks[0])
        finally:
            for task in tasks:
                task.cancel()
            if self._items:
                self._host.cancel(self)
                for item in self._items.values():
                    self._use.give_back(item.tokens, item.size)
                self._desk.metrics.items.labels(self._teacher, self.method, "dropped").inc(len(self._items))
                self._items.clear()
            self._share.close()
            self._ended.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until(self, last: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        """Wait until `last` is done. Raises what any of them raises, and what `end` is told."""
        pending: set[asyncio.Future[None]] = {last, *others, self._ended}
        while not last.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()

    async def _guard(self) -> None:
        """Ask now and then whether the client may still do this."""
        while True:
            await asyncio.sleep(self._desk.timing.alive)
            self._desk.confirm(f"/limbeck.v1.TeacherService/{self.method}", self._caller)

    # ---------------------------------------------------------------------------------------------------- kinds differ

    @abstractmethod
    def _accept(self, start: Start) -> bytes:
        """Check what is asked of all items; the message `started`."""

    @abstractmethod
    async def _take(self, kind: str, content: Any) -> None:
        """Something that the client said after `start`."""

    def _admit(self) -> None:
        """Give the host what waits, as far as it may."""

    def _may_send(self, cost: int) -> bool:
        return True

    # --------------------------------------------------------------------------------------------------------- reading

    async def _begin(self) -> None:
        message = await self._next()
        kind = message.WhichOneof("kind") if message is not None else None
        if message is None or kind != "start":
            raise invalid(f"the first message is {kind or 'missing'}, it must be start")
        self._host = self._desk.find(message.start.teacher)
        self._teacher = message.start.teacher  # only now: names of figures are ours
        await self._until_ready()
        self._info = self._desk.information(self._host)
        expect(message.start.expectation, self._info)
        await self._send(self._accept(message.start))
        self._begun = True

    async def _until_ready(self) -> None:
        """Wait for the teacher, and say what it is doing meanwhile: a large model takes minutes to load."""
        ready = asyncio.ensure_future(self._host.wait_ready())
        timing, now = self._desk.timing, asyncio.get_running_loop().time
        told, at = "", now()
        try:
            while not (await asyncio.wait({ready}, timeout=min(timing.poll, timing.alive)))[0]:
                if self._host.phase != told or now() >= at + timing.alive:
                    told, at = self._host.phase, now()
                    await self._send(self._alive())
            ready.result()
        finally:
            ready.cancel()

    async def _next(self) -> Any:
        """The client's next message, None after its last."""
        try:
            async with asyncio.timeout(self._desk.timing.silent):
                raw = await self._context.read()
        except TimeoutError:
            text = f"nothing came for {self._desk.timing.silent:g} s; send `alive` when there is nothing else"
            raise LimbeckError(Reason.PEER_SILENT, problems=[Problem(text)]) from None
        return None if raw is grpc.aio.EOF else parse(self.request, raw)

    async def _read(self) -> None:
        while (message := await self._next()) is not None:
            kind = message.WhichOneof("kind")
            if kind == "cancel":
                self._cancel(message.cancel.item_id)
            elif kind in ("start", None):
                raise invalid("start is said once" if kind else "a message says nothing that is known here")
            elif kind != "alive":
                await self._take(kind, getattr(message, kind))
            self._wake.set()
            while self._told > UNREAD:  # a client that sends faults and reads no answer
                self._relief.clear()
                await self._relief.wait()
        self._half_closed = True
        self._wake.set()

    async def _keep(self, messages: Sequence[Any]) -> list[Item]:
        """Take items in, or say of each why not; those that were taken in."""
        kept = []
        for number, message in enumerate(messages):
            if message.item_id in self._items:
                raise invalid("is the id of an item that is not answered yet", f"item {message.item_id}")
            if self._draining:
                self._turned_away = True  # the client sends it again elsewhere
                break
            try:
                item = self._checked(message)
                self._use.take(item.tokens, item.size)
            except LimbeckError as error:
                self._fail(message.item_id, error)
            else:
                self._items[message.item_id] = item
                kept.append(item)
            if number % STRIDE == STRIDE - 1:
                await asyncio.sleep(0)  # a message may hold very many: others have their turn
        return [item for item in kept if self._items.get(item.message.item_id) is item]

    @abstractmethod
    def _checked(self, message: Any) -> Item:
        """Raise what is wrong with an item."""

    def _cancel(self, item_id: int) -> None:
        item = self._items.get(item_id)
        if item is None:
            return  # answered meanwhile
        self._forget(item_id)
        self._desk.metrics.items.labels(self._teacher, self.method, "dropped").inc()
        if item.begun:
            self._host.cancel(self, [item_id])

    def _forget(self, item_id: int) -> None:
        item = self._items.pop(item_id)
        self._use.give_back(item.tokens, item.size)
        self._release(item)
        if any(entry[0] == item_id for entry in self._out):
            self._out = deque(entry for entry in self._out if entry[0] != item_id)
        self._wake.set()

    def _release(self, item: Item) -> None:
        """Give back what an item that will not be answered had taken."""
        if item.begun:
            self._share.free(item.left)

    def _fail(self, item_id: int, error: LimbeckError) -> None:
        failed = pb.ItemFailed(item_id=item_id, error=wire_error(error))
        self._control.append(self.response(failed=failed).SerializeToString())
        self._told += len(self._control[-1])
        self._desk.metrics.items.labels(self._teacher, self.method, "failed").inc()
        self._desk.metrics.errors.labels(str(error.reason)).inc()
        self._wake.set()

    # --------------------------------------------------------------------------------------------------------- writing

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            self._same_teacher()
            self._admit()
            if self._control:
                message = self._control.popleft()
                await self._send(message)
                self._told -= len(message)
                self._relief.set()
            elif self._out and self._may_send(self._out[0][2]):
                await self._send_answer()
            elif not self._items and self._half_closed and not self._turned_away:
                return
            elif self._draining and not any(item.begun for item in self._items.values()):
                raise shutting_down()
            else:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._desk.timing.alive):
                await self._wake.wait()
        except TimeoutError:
            await self._send(self._alive())

    async def _send_answer(self) -> None:
        item_id, response, cost, last = self._out.popleft()
        item = self._items[item_id]
        item.left -= cost
        self._sent(cost)
        if last:  # now: the client may use its id again as soon as it has the answer
            del self._items[item_id]
            self._use.give_back(item.tokens, item.size)
        await self._send(response)
        self._share.free(cost + item.left if last else cost)  # a text may be shorter than it might have been
        if last:
            self._desk.metrics.items.labels(self._teacher, self.method, "answered").inc()
            self._desk.metrics.tokens.labels(self._teacher, self.method).inc(item.tokens)

    def _sent(self, cost: int) -> None:
        """Credit was used."""

    def _alive(self) -> bytes:
        phase, seconds = without_paths(self._host.phase), self._host.phase_seconds
        alive = pb.Alive(position=len(self._items), phase=phase, phase_seconds=seconds)
        message: bytes = self.response(alive=alive).SerializeToString()
        return message

    async def _send(self, message: bytes) -> None:
        await self._context.write(message)
        self._desk.metrics.sent.labels(self.method).inc(len(message))

    def _same_teacher(self) -> None:
        """A worker that was started again may have found other weights."""
        if self._host.info is self._seen:
            return
        self._seen = self._host.info
        if self._seen is not None and self._desk.information(self._host) != self._info:
            raise LimbeckError(Reason.TEACHER_MISMATCH, "The teacher was started again and is another one now.")
