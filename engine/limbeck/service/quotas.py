"""What each client has under way, over all its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.config import Limits

WAITING_BYTES = 128 << 20  # of items not answered, as messages: ids to be looked up may be many a token
OUTPUT_BYTES = 256 << 20  # of answers asked of the teacher and not yet sent, of all streams of a client
SERVER_BYTES = 1 << 30  # the same of all clients, who divide it evenly
STREAM_BYTES = 8 << 20  # of these, what each stream has for itself: one that stalls must not stop the others


@dataclass(eq=False, slots=True)
class Pool:
    """What all clients have in common: how many they are, their answers not yet sent, and streams without room."""

    clients: int = 0
    output: int = 0
    _waiting: dict[object, Callable[[], None]] = field(default_factory=dict)

    def wait(self, stream: object, wake: Callable[[], None]) -> None:
        """Wake a stream when there may be room."""
        self._waiting[stream] = wake

    def leave(self, stream: object) -> None:
        """A stream has ended."""
        self._waiting.pop(stream, None)

    def stir(self) -> None:
        """There may be room: let all that wait look."""
        waiting, self._waiting = self._waiting, {}
        for wake in waiting.values():
            wake()


class Use:
    """One client's counts. A stream's own part of `output` is its `Share`."""

    def __init__(self, limits: Limits, pool: Pool) -> None:
        self._limits = limits
        self.pool = pool
        self.streams = self.tokens = self.waiting = self.output = 0

    def take(self, tokens: int, size: int) -> None:
        """Count an item that was sent. Raises QUOTA_EXCEEDED, and counts nothing then."""
        problems = []
        if self.tokens + tokens > self._limits.tokens_in_flight:
            text = f"{tokens:,} tokens are too many beside the {self.tokens:,} in flight"
            problems.append(Problem(f"{text}, {self._limits.tokens_in_flight:,} are allowed", field="tokens_in_flight"))
        if self.waiting + size > WAITING_BYTES:
            text = f"{size:,} bytes of items are too many beside the {self.waiting:,} that wait"
            problems.append(Problem(f"{text}, {WAITING_BYTES:,} are allowed"))
        if problems:
            raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=problems)
        self.tokens += tokens
        self.waiting += size

    def give_back(self, tokens: int, size: int) -> None:
        """An item was answered, failed or dropped."""
        self.tokens -= tokens
        self.waiting -= size


class Share:
    """What one stream has of its client's output."""

    def __init__(self, use: Use, wake: Callable[[], None]) -> None:
        self.use = use
        self.held = 0
        self._wake = wake

    def room(self, cost: int) -> bool:
        """Whether an answer of `cost` bytes may be asked for; where not, the stream is woken when that may change.

        One larger than all room may, where no other client has any.
        """
        use, pool = self.use, self.use.pool
        most = min(OUTPUT_BYTES, SERVER_BYTES // max(pool.clients, 1))
        fits = pool.output + cost <= SERVER_BYTES or pool.output == use.output
        first = self.held == 0 and (fits or cost <= STREAM_BYTES)
        if first or self.held + cost <= STREAM_BYTES or (fits and use.output + cost <= most):
            return True
        pool.wait(self, self._wake)
        return False

    def hold(self, cost: int) -> None:
        """Count an answer asked for."""
        self.held += cost
        self.use.output += cost
        self.use.pool.output += cost

    def free(self, cost: int) -> None:
        """Bytes were sent or dropped: there may be room again, also for other streams."""
        self.held -= cost
        self.use.output -= cost
        self.use.pool.output -= cost
        if cost:
            self.use.pool.stir()

    def close(self) -> None:
        """Give all back."""
        self.use.pool.leave(self)
        self.free(self.held)


class Clients:
    """The clients with calls under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = Pool()
        self._uses: dict[str, Use] = {}

    @contextmanager
    def stream(self, name: str) -> Iterator[Use]:
        """Count a stream of a client while entered. Raises QUOTA_EXCEEDED."""
        use = self._uses.setdefault(name, Use(self._limits, self._pool))
        if use.streams >= self._limits.streams:
            problem = Problem(f"{use.streams} streams are open, {self._limits.streams} are allowed", field="streams")
            raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[problem])
        use.streams += 1
        self._pool.clients = len(self._uses)
        try:
            yield use
        finally:
            use.streams -= 1
            if not use.streams:
                del self._uses[name]
                self._pool.clients = len(self._uses)
                self._pool.stir()
