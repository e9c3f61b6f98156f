"""A call that sends items and gets answers, over as many connections as it takes: each answer is given once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from limbeck.client.calls import LARGEST_MESSAGE, LEAST_CREDIT, MESSAGE, MOST_ITEMS, Call, Named
from limbeck.client.ending import Ending
from limbeck.client.errors import of_item, silent, unavailable
from limbeck.client.link import Link, Retries, Share, Waiting
from limbeck.client.pull import pulled
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.messages import error_of

Item = TypeVar("Item", bound=Named)
Answer = TypeVar("Answer")

MOST_WAITING = 4096  # answers that wait for the caller before nothing more is sent
MOST_HELD = 64 << 20  # bytes of them, where there is no credit
CHUNK = 1 << 20  # bytes of answers handed over at once
GOODBYE = 2.0  # seconds for the server to end an answered call


class _Batch(Generic[Item]):
    """Items that are sent, and sent again, together: one, or all of a message that is scored alone."""

    def __init__(self, items: dict[int, tuple[Item, Any]], tokens: int) -> None:
        self.tokens = tokens
        self.items = {name: item for name, (item, _) in items.items()}
        self.encoded = [encoded for _, encoded in items.values()]
        self.bytes = sum(encoded.ByteSize() for encoded in self.encoded)
        self.answered: set[int] = set()
        self.waiting: set[int] = set()  # sent in this connection and neither answered nor failed
        self.readers: dict[int, Callable[[Any], Any]] = {}
        self.partial: dict[int, int] = {}  # bytes that came of items which are not whole
        self.delay = 0.0  # seconds before it is sent again


class Exchange(Generic[Item, Answer]):
    """Score or Generate. `next` gives answers as they come, None at the end; `close` at any time."""

    def __init__(self, link: Link, call: Call[Item, Answer], items: Iterable[Item] | AsyncIterable[Item]) -> None:
        self._link, self._call, self._source = link, call, items
        self._retries, self._share = Retries(link), Share()
        self._waiting = Waiting(call.teacher, link.times.alive)
        self._of: dict[int, _Batch[Item]] = {}  # by item, what is not answered
        self._unsent: deque[_Batch[Item]] = deque()
        self._fed = False  # whether the source has ended
        self._ready: deque[tuple[Answer, int]] = deque()
        self._held = self._taken = 0  # bytes of whole answers that the caller has not done with; handed over last
        self._left = self._partial = 0  # credit; bytes that came of items which are not whole
        self._news, self._wake, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._heard = self._spoke = 0.0
        self._final: LimbeckError | None = None
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> list[Answer] | None:
        """Some answers, at least one; None after the last. Raises the error that the call ended with.

        What was given before counts as consumed from now on.
        """
        self._held, self._taken = self._held - self._taken, 0
        self._wake.set()
        self._room.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        while not self._ready:
            if self._finished:
                return None
            if self._task.done():
                await self._task
                return None
            await self._news.wait()
            self._news.clear()
        found: list[Answer] = []
        while self._ready and self._taken < CHUNK:
            answer, cost = self._ready.popleft()
            found.append(answer)
            self._taken += cost
        self._room.set()
        return found

    async def close(self) -> None:
        """Stop. What is under way at the server is dropped."""
        task = self._task
        if task is None:
            return
        if self._finished and not task.done():  # it only says goodbye: nobody need wait for that
            self._link.ending.add(task)
            task.add_done_callback(self._link.ending.discard)
            return
        task.cancel()
        await asyncio.wait({task})
        await self._link.budget.give(self._share, self._share.tokens)

    @property
    def _finished(self) -> bool:
        return self._fed and not self._of

    # ------------------------------------------------------------------------------------------------- connections

    async def _run(self) -> None:
        feeder = asyncio.create_task(self._feed())
        try:
            while True:
                try:
                    await self._connected(feeder)
                    return
                except LimbeckError as error:
                    if self._finished:
                        return
                    if error is self._final or (feeder.done() and feeder.exception() is not None):
                        raise  # an item's error, or the source's own
                    await asyncio.sleep(self._retries.delay(error))
                self._begin_again()
        finally:
            feeder.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await feeder
            self._news.set()

    def _begin_again(self) -> None:
        """After a lost connection: nothing was kept there."""
        self._unsent = deque(dict.fromkeys(self._of.values()))
        self._partial = 0
        for batch in self._unsent:
            batch.waiting.clear()
            batch.readers.clear()
            batch.partial.clear()

    async def _connected(self, feeder: asyncio.Task[None]) -> None:
        """One connection. Returns when everything is answered. Raises what it, or the source of items, ended with."""
        call = self._link.call(self._call.method)
        ending = Ending(call, self._link.name)
        self._heard = asyncio.get_running_loop().time()
        reader = asyncio.create_task(self._read(call, ending))
        writer = asyncio.create_task(self._write(call))
        tasks = {reader, writer, feeder, asyncio.create_task(self._watch())}
        waiting = set(tasks)
        try:
            while not self._finished:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task is not reader):  # the reader knows best
                    task.result()
            await asyncio.wait({reader, writer}, timeout=GOODBYE)
        finally:
            tasks.discard(feeder)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _watch(self) -> None:
        """Raises PEER_SILENT."""
        now = asyncio.get_running_loop().time
        while (left := self._heard + self._link.times.silence - now()) > 0:
            await asyncio.sleep(left)
        raise silent(self._link.name, self._link.times.silence)

    # ----------------------------------------------------------------------------------------------------- sending

    async def _feed(self) -> None:
        """Take items from the source as the server's limit and the caller's pace allow."""
        await self._link.budget.known.wait()
        group: dict[int, tuple[Item, Any]] = {}
        tokens = bytes_ = 0
        async for item in pulled(self._source):
            more, encoded = self._call.tokens(item), self._encode(item)
            size = encoded.ByteSize() + 8
            most = (self._link.budget.limit or 1 << 62) // 2
            if item.item_id in group:
                raise _repeated(item.item_id)
            if group and (tokens + more > most or bytes_ + size > LARGEST_MESSAGE):
                await self._add(_Batch(group, tokens))
                group, tokens, bytes_ = {}, 0, 0
            group[item.item_id] = item, encoded
            tokens, bytes_ = tokens + more, bytes_ + size
            if not self._call.alone:
                await self._add(_Batch(group, tokens))
                group, tokens, bytes_ = {}, 0, 0
        if group:
            await self._add(_Batch(group, tokens))
        self._fed = True
        self._wake.set()
        self._news.set()

    def _encode(self, item: Item) -> Any:
        try:
            encoded = self._call.encode(item)
        except (ValueError, TypeError) as error:
            raise _unfit(item.item_id, f"the item cannot be sent: {error}") from None
        if encoded.ByteSize() > LARGEST_MESSAGE:
            raise _unfit(
                item.item_id,
                f"the item takes {encoded.ByteSize():,} bytes, a message holds {LARGEST_MESSAGE:,}",
                "ask for its rows in parts",
            )
        return encoded

    async def _add(self, batch: _Batch[Item]) -> None:
        while len(self._ready) >= MOST_WAITING or self._held > max(self._call.credit, MOST_HELD):
            self._room.clear()
            await self._room.wait()
        await self._link.budget.take(self._share, batch.tokens)
        for name in batch.items:
            if name in self._of:
                raise _repeated(name)
            self._of[name] = batch
        self._unsent.append(batch)
        self._wake.set()

    async def _write(self, call: Any) -> None:
        import grpc

        now = asyncio.get_running_loop().time
        try:
            self._left = max(self._call.credit - self._held, 0)
            await call.write(self._call.start(self._left))
            self._spoke = now()
            while not self._finished:
                message = self._grant() or self._items()
                if message is None:
                    message = await self._pause(self._spoke + self._link.times.alive - now())
                if message is not None:
                    await call.write(message)
                    self._spoke = now()
            await call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            _unless_cancelled()  # the call has ended, and reading it says why

    async def _pause(self, seconds: float) -> Any:
        """Wait for something to do; a sign of life where there was nothing for so long."""
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._wake.wait()
        except TimeoutError:
            message = self._call.request()
            message.alive.position = len(self._of)
            return message
        self._wake.clear()
        return None

    def _items(self) -> Any:
        """The next message of items, None where there is nothing to send."""
        messages: list[Any] = []
        bytes_ = 0
        while self._unsent:
            batch = self._unsent[0]
            if messages and (self._call.alone or bytes_ + batch.bytes > MESSAGE or len(messages) >= MOST_ITEMS):
                break
            self._unsent.popleft()
            bytes_ += batch.bytes
            messages += batch.encoded
            batch.waiting = set(batch.items)
        return self._call.items(messages) if messages else None

    def _grant(self) -> Any:
        """More credit, where it is due: for what the caller has done with.

        While the caller waits, items that are in parts get what they need, or nothing would ever be whole.
        """
        credit = self._call.credit
        if not credit:
            return None
        target = credit - self._held - self._partial
        if not self._held:
            target = max(target, 2 * LEAST_CREDIT)
        due = target - self._left
        if due >= credit // 4 or (self._left < LEAST_CREDIT and due >= LEAST_CREDIT // 4):
            self._left += due
            message = self._call.request()
            message.grant.bytes = due
            return message
        return None

    # ----------------------------------------------------------------------------------------------------- reading

    async def _read(self, call: Any, ending: Ending) -> None:
        import grpc

        now = asyncio.get_running_loop().time
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._heard = now()
                kind = response.WhichOneof("kind")
                if kind == self._call.answer:
                    await self._take(getattr(response, kind))
                elif kind == "failed":
                    await self._fail(response.failed)
                elif kind == "started":
                    await self._started(response.started)
                elif kind == "alive" and response.alive.phase:
                    self._waiting.hear(response.alive.phase, response.alive.phase_seconds)
        except grpc.aio.AioRpcError as error:
            raise await ending.error(error) from None
        except asyncio.CancelledError:
            _unless_cancelled()
        if not self._finished:
            raise unavailable(self._link.name, f"the call ended with {len(self._of)} items unanswered")

    async def _started(self, message: Any) -> None:
        teacher = self._call.started(message)
        await self._link.seen(teacher)
        # From here on it must be this teacher: answers of two would be mixed in silence.
        self._call.expectation.tokenizer_digest = teacher.tokenizer_digest
        self._call.expectation.weights_digest = teacher.weights_digest
        self._call.expectation.vocab_size = teacher.vocab_size

    async def _take(self, part: Any) -> None:
        cost, name = getattr(part, "cost", part.ByteSize()), part.item_id
        self._left -= cost
        batch = self._of.get(name)
        if batch is None:
            raise LimbeckError(
                Reason.SIGNAL_INVALID, problems=[Problem("an answer came for what was not asked", field=f"item {name}")]
            )
        if name in batch.answered:  # asked again only for its company
            if getattr(part, "last", True) and not getattr(part, "more", False):
                await self._settle(batch, name)
            return
        if name not in batch.readers:
            batch.readers[name] = self._call.reader(batch.items[name])
        answer = batch.readers[name](part)
        self._partial += cost
        batch.partial[name] = batch.partial.get(name, 0) + cost
        if answer is None:
            self._wake.set()
            return
        cost = batch.partial[name]
        self._held += cost
        self._ready.append((answer, cost))
        self._news.set()
        self._retries.progress()
        batch.answered.add(name)
        await self._settle(batch, name)

    async def _settle(self, batch: _Batch[Item], name: int) -> None:
        """An item is done with in this connection; so is its batch, or what of it failed is sent again."""
        batch.waiting.discard(name)
        batch.readers.pop(name, None)
        self._partial -= batch.partial.pop(name, 0)
        self._wake.set()
        if batch.waiting:
            return
        if len(batch.answered) == len(batch.items):
            for item_id in batch.items:
                del self._of[item_id]
            self._news.set()
            await self._link.budget.give(self._share, batch.tokens)
        else:
            asyncio.get_running_loop().call_later(batch.delay, self._send_again, batch)

    def _send_again(self, batch: _Batch[Item]) -> None:
        current = all(self._of.get(name) is batch for name in batch.items)
        if current and not batch.waiting and batch not in self._unsent:
            self._unsent.append(batch)
            self._wake.set()

    async def _fail(self, failed: Any) -> None:
        """An item that is not answered: raises its error, or lets it be sent again where that may help."""
        name, error = failed.item_id, of_item(error_of(failed.error), failed.item_id)
        batch = self._of.get(name)
        again = batch is not None and error.reason is Reason.TEACHER_UNAVAILABLE
        if batch is not None and error.reason is Reason.QUOTA_EXCEEDED:
            again = self._call.could_fit(batch.items[name], self._link.limits)
        try:
            if batch is None or not again:
                raise error
            batch.delay = self._retries.delay(error)
        except LimbeckError as final:
            self._final = final
            raise
        await self._settle(batch, name)


def _unless_cancelled() -> None:
    """Inside of a handler: raise again where this task itself is cancelled, and not the call by its channel's end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise


def _unfit(item_id: int, message: str, hint: str | None = None) -> LimbeckError:
    return LimbeckError(Reason.REQUEST_INVALID, problems=[Problem(message, field=f"item {item_id}", hint=hint)])


def _repeated(item_id: int) -> LimbeckError:
    return _unfit(item_id, "another item of this item_id is not answered yet")
