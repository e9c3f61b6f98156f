"""The queue before a lane of a worker: items of all clients in batches by token budget, fairly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

MOST_BYTES = 16 << 20  # of the items of one batch as messages
WINDOW = 64  # items of a client that are looked at for one that fits a batch


@dataclass(eq=False, slots=True, kw_only=True)
class Entry:
    """One item that waits. Entries of equal `key` may share a batch.

    `tokens`: its length in a batch; `size`: its bytes as a message. `named`: no other entry of its `item_id` may be in
    its batch, since its draws depend on it. `lonely`: nobody may be in its batch.
    """

    client: str
    key: bytes
    item_id: int
    tokens: int
    size: int
    named: bool = False
    lonely: bool = False


E = TypeVar("E", bound=Entry)


@dataclass(eq=False, slots=True)
class _Client(Generic[E]):
    """What a client has waiting, by key in order of arrival; whatever is asked as it is has a key of its own."""

    served: int
    queues: dict[Any, dict[E, int]] = field(default_factory=dict)

    def oldest(self) -> Any:
        """The key whose first entry has waited longest."""
        return min(self.queues, key=lambda key: next(iter(self.queues[key].values())))


class Mixer(Generic[E]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) over clients, by tokens.

    The client that was served the fewest tokens goes first; who comes back after a pause gets no credit for it. A
    batch is led by that client's oldest item, and filled with items of the same key, of all clients in their turn,
    those of about the same length first.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._budget = batch_tokens
        self._clients: dict[str, _Client[E]] = {}
        self._served: dict[str, int] = {}  # of clients with nothing waiting that are ahead of the others
        self._now = 0  # tokens served to the client that was last first
        self._arrivals = 0
        self._count = 0

    def __len__(self) -> int:
        """Entries that wait. May be asked in any thread."""
        return self._count

    def __iter__(self) -> Iterator[E]:
        """Every entry that waits."""
        return (entry for client in self._clients.values() for queue in client.queues.values() for entry in queue)

    def add(self, entries: Sequence[E], *, alone: bool = False) -> None:
        """Queue entries of one client. `alone`: they are one batch, in this order, with nobody else's."""
        if not entries:
            return
        name = entries[0].client
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(max(self._served.pop(name, 0), self._now))
        group = object()
        for entry in entries:
            self._arrivals += 1
            key = group if alone else entry if entry.lonely else entry.key
            client.queues.setdefault(key, {})[entry] = self._arrivals
        self._count += len(entries)

    def drop(self, entry: E) -> None:
        """Forget an entry that waits. A group that is asked as it is keeps it, for the sake of the others' bits."""
        client = self._clients.get(entry.client)
        queue = client.queues.get(entry if entry.lonely else entry.key) if client else None
        if client is not None and queue is not None and queue.pop(entry, None) is not None:
            self._count -= 1
            self._tidy(entry.client, entry if entry.lonely else entry.key)

    def next(self) -> list[E]:
        """The next batch, taken off the queue; empty where nothing waits."""
        if not self._clients:
            return []
        first = min(self._clients, key=lambda name: self._clients[name].served)
        key = self._clients[first].oldest()
        self._now = self._clients[first].served
        if isinstance(key, bytes):
            return list(self._mix(first, key))
        batch = list(self._clients[first].queues[key])
        for entry in batch:
            self._take(entry, key)
        return batch

    def _mix(self, first: str, key: bytes) -> Iterator[E]:
        """Entries of one batch, each taken off the queue."""
        lead = next(iter(self._clients[first].queues[key]))
        rows, longest, size = 0, lead.tokens, 0
        ids: set[int] = set()
        open_ = {name for name, client in self._clients.items() if key in client.queues}
        entry: E | None = lead
        while True:
            if entry is not None:
                rows, longest, size = rows + 1, max(longest, entry.tokens), size + entry.size
                ids.add(entry.item_id)
                if key not in self._take(entry, key):
                    open_.discard(entry.client)
                yield entry
            if not open_:
                return
            name = min(open_, key=lambda name: self._clients[name].served)
            entry = self._fitting(self._clients[name].queues[key], rows, longest, size, ids)
            if entry is None:
                open_.discard(name)

    def _fitting(self, queue: dict[E, int], rows: int, longest: int, size: int, ids: set[int]) -> E | None:
        """Of a client's first entries the one of the nearest length that fits."""
        fitting = (
            entry
            for entry in islice(queue, WINDOW)
            if (rows + 1) * max(longest, entry.tokens) <= self._budget
            and size + entry.size <= MOST_BYTES
            and not (entry.named and entry.item_id in ids)
        )
        return min(fitting, key=lambda entry: abs(entry.tokens - longest), default=None)

    def _take(self, entry: E, key: Any) -> dict[Any, dict[E, int]]:
        client = self._clients[entry.client]
        del client.queues[key][entry]
        self._count -= 1
        client.served += entry.tokens
        self._tidy(entry.client, key)
        return client.queues

    def _tidy(self, name: str, key: Any) -> None:
        """Forget a queue without entries, and a client without queues, but for what it is ahead of the others."""
        client = self._clients[name]
        if not client.queues[key]:
            del client.queues[key]
        if not client.queues:
            del self._clients[name]
            self._served = {name: served for name, served in self._served.items() if served > self._now}
            if client.served > self._now:
                self._served[name] = client.served
