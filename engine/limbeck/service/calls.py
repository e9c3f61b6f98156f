"""The calls of one service that are under way, and the end of taking new ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from limbeck.errors import shutting_down
from limbeck.service.gate import CALL

Handler = Callable[[Any, Any], Awaitable[Any]]


class Calls:
    """Counts them. `draining`: new ones are turned away, SERVER_UNAVAILABLE."""

    def __init__(self) -> None:
        self.under_way = 0
        self.draining = False

    def counted(self, handler: Handler) -> Handler:
        """The handler, counted until its call is over with its status told."""

        async def call(request: Any, context: Any) -> Any:
            self.check()
            self.under_way += 1
            CALL.get().held.callback(self._over)
            return await handler(request, context)

        return call

    def check(self) -> None:
        """Raise SERVER_UNAVAILABLE while the server drains."""
        if self.draining:
            raise shutting_down()

    def _over(self) -> None:
        self.under_way -= 1
