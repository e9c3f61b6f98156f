"""Items from whatever the caller has, one at a time, without holding up the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


async def pulled(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The items of `source`, each asked for when it is wanted.

    A plain iterator may wait for something as long as it likes: it runs in a thread of its own.
    """
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    elif isinstance(source, Sequence):
        for item in source:
            yield item
    else:
        thread = _Thread(iter(source))
        try:
            while (item := await thread.next()) is not _END:
                yield item
        finally:
            thread.stop()


class _Thread:
    """Runs an iterator. A daemon: an iterator that never gives its next item keeps no process from ending."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._wanted: queue.SimpleQueue[asyncio.Future[Any] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="limbeck-items", daemon=True).start()

    async def next(self) -> Any:
        future = self._loop.create_future()
        self._wanted.put(future)
        return await future

    def stop(self) -> None:
        self._wanted.put(None)

    def _run(self) -> None:
        while (future := self._wanted.get()) is not None:
            try:
                value, error = next(self._source, _END), None
            except BaseException as raised:
                value, error = None, raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, value, error)
            except RuntimeError:  # the loop has ended meanwhile
                return


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
