"""One client's connection: its channel, its unary calls, what it has under way, when to try again."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any

from limbeck.client.connection import Connection
from limbeck.client.errors import AGAIN, error_of_call, silent, unavailable
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import teacher_service_pb2 as pb

LOG = logging.getLogger("limbeck.client")
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds before a call is tried again; doubles, less up to a half by chance


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `timeout`: of a call that asks for one thing, and of the first contact with a server.

    `retry_for`: how long an interrupted call is tried again without an answer. `alive`: a sign of life is sent where
    nothing else was for so long. `silence`: a call that nothing comes from for so long is given up, and tried again.
    """

    timeout: float = 10.0
    retry_for: float = 300.0
    alive: float = 15.0
    silence: float = 80.0


class Budget:
    """Tokens that a client has under way, over all its calls: the server's limit is kept before it has to refuse."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.known = asyncio.Event()  # set when a teacher was seen
        self._used = 0
        self._changed = asyncio.Condition()

    async def learn(self, limit: int) -> None:
        """The server's limit; 0 for none."""
        self.limit = limit or 1 << 62
        self.known.set()
        async with self._changed:
            self._changed.notify_all()

    async def take(self, share: Share, tokens: int) -> None:
        """Wait until `tokens` more may be sent for `share`.

        A call takes half of what the others leave, so that one whose caller waits never stops another for good. What
        is too large for the limit goes alone: the server says why it cannot be.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(share, tokens))
            self._used += tokens
            share.tokens += tokens

    async def give(self, share: Share, tokens: int) -> None:
        """Give back what was taken."""
        self._used -= tokens
        share.tokens -= tokens
        async with self._changed:
            self._changed.notify_all()

    def _fits(self, share: Share, tokens: int) -> bool:
        if self.limit is None:
            return False
        if self._used == 0:
            return True
        if share.tokens == 0:
            return self._used + tokens <= self.limit
        return share.tokens + tokens <= (self.limit - self._used + share.tokens) // 2


@dataclass(slots=True, eq=False)
class Share:
    """What one call has taken of the budget."""

    tokens: int = 0


class Link:
    """A channel, made in the event loop that first uses it, and what all calls over it share."""

    def __init__(self, connection: Connection, times: Times) -> None:
        self.connection, self.times = connection, times
        self.met = False  # whether the server was ever reached
        self.limits = pb.Limits()
        self.budget = Budget()
        self.ending: set[asyncio.Task[Any]] = set()  # calls that are answered and only say goodbye
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self.closed = False

    @property
    def name(self) -> str:
        """The addresses, for messages."""
        return self.connection.name

    def call(self, method: str, *request: Any, **options: Any) -> Any:
        """Begin a call of any of the services. Raises SERVER_UNAVAILABLE after :meth:`close`."""
        if self.closed:
            raise LimbeckError(Reason.SERVER_UNAVAILABLE, "The client is closed.")
        metadata = self.connection.metadata()
        if not self._stubs:
            self._channel = self.connection.channel()
            self._stubs = _methods(self._channel)
        return self._stubs[method](*request, metadata=metadata, **options)

    async def ask(self, method: str, request: Any, *, work: float = 0.0, again: frozenset[Reason] = AGAIN) -> Any:
        """One question, one answer, within `timeout` seconds; tried again where that may help, for reasons of `again`.

        `work`: seconds that the server may take in addition, once it was reached.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self.times.timeout
        last = end + work
        delay = FIRST_DELAY
        while True:
            began = loop.time()
            try:
                answer = await self._answer(method, request, max((last if work else end) - began, 0.001))
            except LimbeckError as error:
                wait = delay * random.uniform(0.5, 1)
                if loop.time() - began > self.times.timeout:  # it was at work when it was lost: patience begins anew
                    end = min(loop.time() + self.times.timeout, last)
                if error.reason not in again or loop.time() + wait >= end or self.closed:
                    raise
                await asyncio.sleep(wait)
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                self.met = True
                return answer

    async def _answer(self, method: str, request: Any, timeout: float) -> Any:
        import grpc

        try:
            return await self.call(method, request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.name) from None

    async def read(self, call: Any) -> Any:
        """What a call says next, None after the last of one that ended well. Raises what it ended with, PEER_SILENT."""
        import grpc

        try:
            async with asyncio.timeout(self.times.silence):
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.name) from None
        except TimeoutError:
            raise silent(self.name, self.times.silence) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise unavailable(self.name, "the client was closed") from None
        self.met = True
        return None if response is grpc.aio.EOF else response

    async def seen(self, teacher: pb.Teacher) -> None:
        """Note what a server says of a teacher: the limits hold for all calls."""
        self.met = True
        self.limits = teacher.limits
        await self.budget.learn(int(teacher.limits.tokens_in_flight))

    def renew(self) -> None:
        """Give a silent connection up: a proxy may keep it open, and answer its pings, for good.

        All calls over it end, and begin again over another one.
        """
        channel, self._channel, self._stubs = self._channel, None, {}
        if channel is not None:
            task = asyncio.ensure_future(channel.close())
            self.ending.add(task)
            task.add_done_callback(self.ending.discard)

    async def close(self) -> None:
        """End what is under way and the connection. A second call does nothing."""
        self.closed = True
        if self.ending:
            await asyncio.wait(self.ending, timeout=1.0)
        channel, self._channel, self._stubs = self._channel, None, {}
        if channel is not None:
            await channel.close()


def _methods(channel: Any) -> dict[str, Any]:
    """What can be called, by its name, which no two services share."""
    from limbeck.v1.plugin_service_pb2_grpc import PluginServiceStub
    from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub
    from limbeck.v1.training_service_pb2_grpc import TrainingServiceStub

    stubs = (TeacherServiceStub(channel), TrainingServiceStub(channel), PluginServiceStub(channel))
    return {name: method for stub in stubs for name, method in vars(stub).items()}


class Waiting:
    """Says in the log what a teacher that starts is doing: each new phase, and how long it has lasted now and then."""

    def __init__(self, teacher: str, every: float = 15.0) -> None:
        self._teacher, self._every = teacher, every
        self._phase: str | None = None
        self._next = 0.0

    def hear(self, phase: str, seconds: float) -> None:
        """It still starts."""
        now = asyncio.get_running_loop().time()
        if phase != self._phase or now >= self._next:
            self._phase, self._next = phase, now + self._every
            LOG.warning("%s", waiting_text(self._teacher, phase, seconds))


def waiting_text(teacher: str, phase: str, seconds: float) -> str:
    """`teacher gemma: loading the weights, 12 s`."""
    return f"teacher {teacher}: {phase or 'it starts'}" + (f", {seconds:.0f} s" if seconds >= 1 else "")


class Retries:
    """When an interrupted call is tried again, and when no more."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._since: float | None = None
        self._count = 0
        self._next = 0.0  # when the next try is due

    def progress(self) -> None:
        """Something was answered: patience begins anew."""
        self._since, self._count, self._next = None, 0, 0.0

    def delay(self, error: LimbeckError) -> float:
        """Seconds to wait before the next try. Raises `error` where trying again is no use, or was for long enough."""
        if error.reason not in AGAIN or self._link.closed:
            raise error
        if error.reason is Reason.PEER_SILENT:
            self._link.renew()
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        times = self._link.times
        left = self._since + (times.retry_for if self._link.met else times.timeout) - now
        if left <= 0:
            raise _given_up(error, now - self._since) from None
        if now >= self._next:  # else it is one failure with the last: a worker's death fails many items
            if not self._count:
                LOG.warning("%s: trying again for up to %.0f s. %s", self._link.name, left, error)
            wait = min(FIRST_DELAY * 2.0**self._count, LONGEST_DELAY) * random.uniform(0.5, 1)
            self._next = now + min(wait, left)
            self._count = min(self._count + 1, 16)
        return self._next - now


def _given_up(error: LimbeckError, seconds: float) -> LimbeckError:
    problems = [*error.problems, Problem(f"tried for {seconds:.0f} s without an answer")]
    return LimbeckError(error.reason, error.message, problems)
