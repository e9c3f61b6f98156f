"""Frames between a server and its worker: 4 bytes of length, little-endian, and a message."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TypeVar

from google.protobuf.message import Message

LARGEST = 64 << 20  # bytes of one frame; what is sent is far below
_READ_AHEAD = 1 << 20
_WRITE_BEHIND = 8 << 20  # bytes that may wait here: a teacher computes on while its last answers are read

M = TypeVar("M", bound=Message)


class Link:
    """One end of a stream socket. Belongs to the event loop that made it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, end: socket.socket) -> Link:
        """Take over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=_READ_AHEAD)
        writer.transport.set_write_buffer_limits(_WRITE_BEHIND)
        return cls(reader, writer)

    async def receive(self, kind: type[M]) -> M | None:
        """The next message, None where the other end is gone. Raises ValueError for a frame that cannot be."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "little")
            if length > LARGEST:
                raise ValueError(f"a frame of {length:,} bytes came, allowed are {LARGEST:,}")
            return kind.FromString(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def post(self, message: Message) -> None:
        """Send without waiting: for what is bounded otherwise. Lost without a word where the other end is gone."""
        content = message.SerializeToString()
        if len(content) > LARGEST:
            raise ValueError(f"a frame of {len(content):,} bytes, allowed are {LARGEST:,}")
        if not self._writer.is_closing():
            self._writer.writelines((len(content).to_bytes(4, "little"), content))

    async def send(self, message: Message) -> None:
        """Send, and wait while the other end is behind. Raises ConnectionError where it is gone."""
        self.post(message)
        await self._writer.drain()

    def abort(self) -> None:
        """Let go of the socket; what was not sent is lost, and `receive` gives None."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Let go of the socket, and wait until that is done."""
        self.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
