"""How a call of two directions ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from limbeck.client.errors import error_of_call, unavailable
from limbeck.errors import LimbeckError

LATE = 0.5  # seconds for the status after a write that failed
_LOST = "Internal error from Core"


class Ending:
    """Notes every status that gRPC gives to a call.

    Where a write is under way while the server ends the call, gRPC puts a status of its own over the server's
    (grpc/grpc#36066), before or after it: an error of the server would be lost at random. With answers still unread the
    server's never comes; it is taken for a lost connection then, and the next call will tell.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._address = address
        self._statuses: list[Any] = []
        self._noted = asyncio.Event()
        call.add_done_callback(self._note)

    async def error(self, raised: Any) -> LimbeckError:
        """The error of the call, of which reading raised `raised`."""
        try:
            async with asyncio.timeout(LATE):
                while True:
                    for status in (*self._statuses, raised):
                        if status.details() != _LOST:
                            return error_of_call(status, self._address)
                    self._noted.clear()
                    await self._noted.wait()
        except TimeoutError:
            return unavailable(self._address, "the connection was lost while something was sent")

    def _note(self, call: Any) -> None:
        code, details, trailers = map(_now, (call.code(), call.details(), call.trailing_metadata()))
        import grpc

        if code is not grpc.StatusCode.OK:
            self._statuses.append(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details))
        self._noted.set()


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    return None
