"""Stored signals from a cursor, over as many connections as it takes: each sequence is given once, in order."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from functools import cached_property

import numpy as np
import numpy.typing as npt

from limbeck.client.calls import Expectation
from limbeck.client.errors import unavailable
from limbeck.client.link import Link, Retries
from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals import Signal, SignalHeader
from limbeck.signals.codec import Packed, decode
from limbeck.signals.messages import header_of, numbers
from limbeck.v1 import teacher_service_pb2 as pb

AHEAD = 8 << 20  # bytes that are read before the caller asks for them


class StoredSignal:
    """The signal of one sequence of a dataset.

    `sequence`: its place, from 1: where to go on from. `dataset`: its name. Values are decoded when they are first
    asked for.
    """

    def __init__(self, dataset: str, message: pb.StoredSignal, header: SignalHeader) -> None:
        self.dataset, self.sequence = dataset, int(message.sequence)
        self._message, self._header = message, header

    def __repr__(self) -> str:
        return f"StoredSignal({self.dataset!r}, {self.sequence}, n={self._message.signal.n})"

    @cached_property
    def signal(self) -> Signal:
        """What the teacher says. Raises SIGNAL_INVALID for bytes that cannot be."""
        packed = self._message.signal
        fields = {name: getattr(packed, name) for name in self._header.row_bytes}
        return decode(Packed(packed.first_row, packed.n, fields), self._header)

    @property
    def ids_sha256(self) -> bytes:
        """sha256 of the token ids as int32 little-endian."""
        return bytes(self._message.ids_sha256)

    @cached_property
    def tokens(self) -> TokenSequence:
        """Its tokens and which of them are trained, where ``tokens=True`` was asked for.

        `index` is `sequence` − 1, `source` the dataset, `line` the sequence; byte offsets are not sent and 0. Raises
        SIGNAL_INVALID where they were not asked for, or are not those that the signal was captured for.
        """
        if not self._message.HasField("tokens"):
            raise self._invalid("its tokens were not asked for", "ask for signals(…, tokens=True)")
        raw = self._message.tokens
        ids: npt.NDArray[np.int32] = numbers(raw.ids, "<i4", "ids").astype(np.int32, copy=False)
        trained = np.frombuffer(raw.trained, np.uint8).astype(np.bool_)
        if hashlib.sha256(raw.ids).digest() != self.ids_sha256 or len(trained) != len(ids):
            raise self._invalid("its tokens are not those that the signal was captured for", "see the server's store")
        return TokenSequence(
            index=self.sequence - 1,
            ids=ids,
            trained=trained,
            offsets=np.zeros((len(ids), 2), np.int32),
            source=self.dataset,
            line=self.sequence,
            pair=raw.pair if raw.HasField("pair") else -1,
            chosen=not raw.rejected,
        )

    def _invalid(self, message: str, hint: str) -> LimbeckError:
        problem = Problem(message, field=f"sequence {self.sequence} of {self.dataset}", hint=hint)
        return LimbeckError(Reason.SIGNAL_INVALID, problems=[problem])


class Replay:
    """StreamSignals. `next` gives signals as they come, None after the last; `close` at any time."""

    def __init__(self, link: Link, dataset: str, after: int, tokens: bool, expectation: Expectation) -> None:
        if not (isinstance(after, int | np.integer) and 0 <= after < 1 << 64):
            problem = Problem(f"is {after!r}, allowed is a sequence, or 0 to begin with the first", field="after")
            raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem])
        self._link, self._dataset, self._tokens = link, dataset, tokens
        self._expectation = expectation.message()
        self._last = int(after)
        self._retries = Retries(link)
        self._header: SignalHeader | None = None
        self._total = 0
        self._ready: deque[tuple[list[StoredSignal], int]] = deque()
        self._bytes = 0
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> list[StoredSignal] | None:
        """Some signals, at least one; None after the last. Raises the error that the call ended with."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        while not self._ready:
            if self._task.done():
                await self._task
                return None
            await self._news.wait()
            self._news.clear()
        found, size = self._ready.popleft()
        self._bytes -= size
        self._room.set()
        return found

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._connected()
                    return
                except LimbeckError as error:
                    await asyncio.sleep(self._retries.delay(error))
        finally:
            self._news.set()

    async def _connected(self) -> None:
        request = pb.StreamSignalsRequest(
            dataset=self._dataset,
            after_sequence=self._last,
            with_tokens=self._tokens,
            expectation=self._expectation,
        )
        call = self._link.call("StreamSignals", request)
        try:
            while (response := await self._link.read(call)) is not None:
                kind = response.WhichOneof("kind")
                if kind == "started":
                    self._started(response.started.dataset)
                elif kind == "signals":
                    await self._take(response.signals)
                    self._retries.progress()
                elif kind == "alive":
                    self._retries.progress()  # the capture may rest for as long as it likes
        finally:
            call.cancel()
        if self._header is None or self._last < self._total:
            raise unavailable(self._link.name, f"the call ended after sequence {self._last} of {self._total}")

    def _started(self, dataset: pb.Dataset) -> None:
        header = header_of(dataset.header)
        if self._header is not None and header != self._header:
            problem = Problem("the stored signals are others than before the reconnect", field=self._dataset)
            raise LimbeckError(Reason.TEACHER_MISMATCH, problems=[problem])
        self._header, self._total = header, int(dataset.total)

    async def _take(self, message: pb.StoredSignals) -> None:
        if self._header is None:
            raise self._broken("signals came before the stream's start")
        found = []
        for signal in message.signals:
            if signal.sequence <= self._last:
                continue  # delivery is at least once
            if signal.sequence != self._last + 1:
                raise self._broken(f"sequence {signal.sequence} came where {self._last + 1} was due")
            self._last += 1
            found.append(StoredSignal(self._dataset, signal, self._header))
        if not found:
            return
        size = message.ByteSize()
        while self._bytes and self._bytes + size > AHEAD:
            self._room.clear()
            await self._room.wait()
        self._bytes += size
        self._ready.append((found, size))
        self._news.set()

    def _broken(self, message: str) -> LimbeckError:
        return LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message, field=self._dataset)])
