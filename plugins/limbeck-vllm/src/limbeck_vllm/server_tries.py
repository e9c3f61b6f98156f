"""Requests to one server: so many at once, tried again while that may help, and every fault told in words."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from textwrap import shorten
from typing import TypeVar

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck_vllm.server_config import VllmServerConfig

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries, where the server does not ask for more
CONNECT = 10.0  # seconds
WORDS = 300  # characters of a server's own words that are told
BAD_KEY = "see that {} holds the server's key"
NO_KEY = "name the variable with its key in `key_env`"


class WrongAnswer(Exception):
    """An answer that is whole, and not what was asked for: asking again would not help."""


class Fault(Exception):
    """Why a try failed. `reason` None: that of the caller. `passing`: it may help to try again, after `pause` s."""

    def __init__(
        self,
        message: str,
        reason: Reason | None = None,
        *,
        hint: str | None = None,
        passing: bool = False,
        pause: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message, self.reason, self.hint, self.passing, self.pause = message, reason, hint, passing, pause


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the server does not take, in its words."""

    words: str


class Tries:
    """What all requests of a teacher share; used in one event loop. Raises TEACHER_REFUSED where there is no key."""

    def __init__(self, config: VllmServerConfig) -> None:
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        self.key = _key(config)

    async def run(
        self,
        once: Callable[[], Awaitable[T]],
        reason: Reason = Reason.TEACHER_REFUSED,
        field: str | None = None,
        tries: int | None = None,
    ) -> T:
        """What `once` gives; it raises Fault or WrongAnswer.

        Raises SERVER_UNAVAILABLE where nothing answers after all `tries`, TEACHER_REFUSED for a key or a model that
        the server does not take, else `reason`, with `field` as the place.
        """
        most = tries or self._config.tries
        tried = 0
        while True:
            tried += 1
            try:
                return await self._once(once)
            except Fault as fault:
                if not fault.passing or tried >= most:
                    times = f", tried {tried} times" if tried > 1 else ""
                    message = f"{self._config.address}: {fault.message}{times}"
                    problem = Problem(message, field=field, hint=fault.hint)
                    raise LimbeckError(fault.reason or reason, problems=[problem]) from None
                pause = max(fault.pause, min(FIRST_PAUSE * 2.0 ** (tried - 1), LONGEST_PAUSE))
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def taken(self, once: Callable[[], Awaitable[T]]) -> T | Refusal:
        """What `once` gives, or the server's words where it does not take such a request."""
        try:
            return await self._once(once)
        except Fault as fault:
            if fault.reason is None and not fault.passing:
                return Refusal(fault.message)
        return await self.run(once)

    async def _once(self, once: Callable[[], Awaitable[T]]) -> T:
        seconds = self._config.timeout
        try:
            async with self._slots, asyncio.timeout(seconds):
                return await once()
        except TimeoutError:
            hint = "raise `timeout`, or lower `concurrency`"
            message = f"no answer within {seconds:g} s"
            raise Fault(message, Reason.SERVER_UNAVAILABLE, hint=hint, passing=True) from None
        except WrongAnswer as error:
            raise Fault(str(error)) from None

    def refused_key(self, said: str) -> Fault:
        """A key that the server does not take, or that it misses."""
        name = self._config.key_env
        hint = BAD_KEY.format(name) if name else NO_KEY
        return Fault(f"it refuses the key ({said})", Reason.TEACHER_REFUSED, hint=hint)

    def safe(self, words: str) -> str:
        """A server's words, short and without the key, which some repeat."""
        text = words if self.key is None else words.replace(self.key, "(the key)")
        return shorten(text, WORDS, placeholder=" …")


def _key(config: VllmServerConfig) -> str | None:
    name = config.key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if key and key.isascii() and key.isprintable() and " " not in key:
        return key
    fault = "holds what can be no key (white space, or other than ASCII)" if key else "is not set"
    problem = Problem(f"the environment variable {name} {fault}", field="key_env", hint=f"export {name}=…")
    raise LimbeckError(Reason.TEACHER_REFUSED, problems=[problem])
