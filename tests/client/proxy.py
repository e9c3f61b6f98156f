"""A network between client and server: it delays, splits what it passes on, and drops connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .scripted import Threaded


class Proxy:
    """Passes bytes on to `address`. A connection is dropped after some `most` bytes, drawn from `seed`; 0 for never."""

    def __init__(self, address: str, *, most: int, delay: float = 0.0, seed: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._to, self._most, self._delay = (host, int(port)), most, delay
        self._random = random.Random(seed)
        self.connections = self.dropped = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def drop(self) -> None:
        """Drop all connections that there are, now; from any thread."""

        def now() -> None:
            for task in self._tasks:
                self.dropped += task.cancel()

        self._server.get_loop().call_soon_threadsafe(now)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        left = [self._random.randrange(self._most // 4, self._most) if self._most else 1 << 60]
        try:
            there, back = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ways = [self._pass(reader, back, left), self._pass(there, writer, left)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in tasks:
                way.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (writer, back):
                end.transport.abort()  # a reset, not a good end
            self._tasks.discard(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: list[int]) -> None:
        with suppress(OSError):
            while piece := await source.read(self._random.randrange(1, 4096)):
                await asyncio.sleep(self._delay * self._random.random())
                left[0] -= len(piece)
                if left[0] < 0:
                    self.dropped += 1
                    return
                sink.write(piece)
                await sink.drain()


@contextmanager
def between(address: str, **options: float) -> Iterator[tuple[Proxy, str]]:
    """A proxy before a server, and its own address."""
    thread = Threaded()
    proxy = Proxy(address, **options)  # type: ignore[arg-type]
    try:
        yield proxy, thread.run(proxy.start())
        thread.run(proxy.stop())
    finally:
        thread.close()
