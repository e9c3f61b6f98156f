"""How fast an endpoint lets itself be asked: one gate for all workers."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from limbeck_openai.tally import Tally

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
POLL = 0.2  # seconds between two looks at whether to wait on
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Stopped(Exception):
    """Nobody waits for the answer any more, and the next try is not made."""


async def rest(seconds: float, going: Callable[[], bool]) -> None:
    """Sleep. Raises Stopped as soon as `going` says no."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        if not going():
            raise Stopped
        if (left := until - loop.time()) <= 0:
            return
        await asyncio.sleep(min(left, POLL))


def pause(failed: int) -> float:
    """Seconds to wait after so many tries: a draw from 0 up to a bound that doubles ("full jitter", Brooker 2015)."""
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failed, 16)))


def told_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Retry-After names, as a number or as a date; None where it names none.

    A date is read against the service's own clock where it sends it.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            return float(value) * unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, TypeError, IndexError):
        return None
    try:
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, TypeError, IndexError):
        now = time.time()
    return max(until - now, 0.0)


def told_reset(value: str) -> float | None:
    """Seconds of ``6m0s``, ``20ms`` or ``12.5``; None for anything else."""
    value = value.strip().lower()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass
class _Left:
    amount: float
    until: float


class Gate:
    """Shut while the service wants quiet. All times are those of the event loop.

    `refusals`: rounds of 429 since the last answer; calls that were under way together are one round. `refused_for`:
    seconds from the first of them to the last.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._until = 0.0
        self._left: dict[str, _Left] = {}
        self.refusals = 0
        self._first_at = self._shut_at = -math.inf

    @property
    def refused_for(self) -> float:
        """See the class."""
        return self._shut_at - self._first_at if self.refusals else 0.0

    async def passed(self, tokens: int, going: Callable[[], bool]) -> None:
        """Return when a call of so many tokens may go out. Raises Stopped."""
        loop = asyncio.get_running_loop()
        while (left := self._opens(loop.time(), tokens) - loop.time()) > 0:
            await rest(min(left, POLL), going)  # the gate may be shut for longer meanwhile
        for name, amount in (("requests", 1), ("tokens", tokens)):
            if name in self._left:
                self._left[name].amount -= amount

    def _opens(self, now: float, tokens: int) -> float:
        self._left = {name: left for name, left in self._left.items() if left.until > now}
        for name, amount in (("requests", 1), ("tokens", tokens)):
            if name in self._left and self._left[name].amount < amount:
                self._shut(now, self._left[name].until)
        return self._until

    def _shut(self, now: float, until: float) -> None:
        if until > self._until:
            self._tally.waited += until - max(now, self._until)
            self._until = until

    def heard(self, headers: Mapping[str, str]) -> None:
        """Take in what an answer's headers say of requests and tokens that are left."""
        now = asyncio.get_running_loop().time()
        for name in ("requests", "tokens"):
            amount = headers.get(f"x-ratelimit-remaining-{name}", "").strip()
            reset = told_reset(headers.get(f"x-ratelimit-reset-{name}", ""))
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", amount) and reset is not None:
                self._left[name] = _Left(float(amount), now + reset)

    def refused(self, began: float, wait: float | None) -> None:
        """A call that began at `began` was told 429, and to wait so many seconds, or just to wait.

        Where a wait as told did not help, the next one is no shorter than without a word.
        """
        now = asyncio.get_running_loop().time()
        if began >= self._shut_at:  # not one of those that were already under way at the last refusal
            self.refusals += 1
            self._shut_at = now
            if self.refusals == 1:
                self._first_at = now
        if wait is None or self.refusals > 1:
            wait = max(wait or 0.0, pause(self.refusals))
        self._shut(now, now + wait)

    def answered(self) -> None:
        """A call was answered."""
        self.refusals = 0
