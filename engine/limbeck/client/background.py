"""The thread that runs the client for callers without asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol[T_co]):
    """What gives answers in lists, and None at the end."""

    async def next(self) -> Sequence[T_co] | None: ...

    async def close(self) -> None: ...


class Background:
    """An event loop in a thread, begun when it is first used. One for all clients: gRPC likes no more than one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():  # after a fork: a new one
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="limbeck-client", daemon=True)
                self._thread.start()
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; ended early where the caller is interrupted."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("this runs in the client's own event loop: use connect_async there")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def drop(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run to the end; in the loop's own thread, where garbage may be collected too, without waiting for it."""
        if threading.current_thread() is self._thread:
            asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        else:
            self.run(coroutine)


BACKGROUND = Background()


def each(stream: Stream[T]) -> Generator[T, None, None]:
    """The answers of a stream that the background loop runs, one after the other."""
    try:
        while (found := BACKGROUND.run(stream.next())) is not None:
            yield from found
    finally:
        BACKGROUND.drop(stream.close())


async def from_any_loop(stream: Stream[T]) -> AsyncGenerator[T, None]:
    """The answers of a stream that the background loop runs, in the caller's own event loop."""
    try:
        while (found := await in_background(stream.next())) is not None:
            for answer in found:
                yield answer
    finally:
        await in_background(stream.close())


async def in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run where the client lives, awaited in the caller's own event loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, BACKGROUND.loop))


async def flat(stream: Stream[T]) -> AsyncGenerator[T, None]:
    """The answers of a stream of the running event loop, one after the other."""
    try:
        while (found := await stream.next()) is not None:
            for answer in found:
                yield answer
    finally:
        await stream.close()
