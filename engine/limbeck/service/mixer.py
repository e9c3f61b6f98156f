"""The queue before a lane of a worker: items of all clients in batches by token budget, fairly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Generic, TypeVar

MOST_BYTES = 16 << 20  # of the items of one batch as messages
WINDOW = 64  # items of a client that are looked at for one that fits a batch


@dataclass(eq=False, slots=True)
class _Group:
    """Entries that are one batch as they are. `wanted`: how many of them somebody still waits for."""

    wanted: int


@dataclass(eq=False, slots=True, kw_only=True)
class Entry:
    """One item that waits. Entries of equal `key` may share a batch.

    `tokens`: its length in a batch; `size`: its bytes as a message. `named`: no other entry of its `item_id` may be in
    its batch, since its draws depend on it.
    """

    client: str
    key: bytes
    item_id: int
    tokens: int
    size: int
    named: bool = False
    group: _Group | None = None  # the mixer's


E = TypeVar("E", bound=Entry)


@dataclass(eq=False, slots=True)
class _Client(Generic[E]):
    """What a client has waiting, by key or group, in order of arrival. `served`: its tokens so far."""

    served: int
    queues: dict[bytes | _Group, dict[E, int]] = field(default_factory=dict)

    def oldest(self) -> bytes | _Group:
        """Where the entry is that has waited longest."""
        return min(self.queues, key=lambda key: next(iter(self.queues[key].values())))


class Mixer(Generic[E]):
    """Self-clocked fair queueing (Golestani, 1994) over clients, by tokens.

    The client that was served the fewest tokens goes first. Who comes, or comes back after a pause, is taken to have
    been served as much as the one who was first last: neither a pause nor a new name earns credit. A
    batch is led by that client's oldest item, and filled with items of the same key, of all clients in their turn,
    those of about the same length first. rows × longest ≤ `batch_tokens`, but for an item that is longer alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._budget = batch_tokens
        self._clients: dict[str, _Client[E]] = {}
        self._now = 0  # what the client that was first last has been served since then
        self._ahead: dict[str, int] = {}  # what clients with nothing waiting were served, where above that
        self._arrivals = 0
        self._count = 0

    def __len__(self) -> int:
        """Entries that wait. May be asked in any thread."""
        return self._count

    def add(self, entries: Sequence[E], *, alone: bool = False) -> None:
        """Queue entries of one client. `alone`: they are one batch, in this order, with nobody else's."""
        if not entries:
            return
        name = entries[0].client
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(max(self._ahead.pop(name, 0), self._now))
        group = _Group(len(entries)) if alone else None
        for entry in entries:
            self._arrivals += 1
            entry.group = group
            client.queues.setdefault(group or entry.key, {})[entry] = self._arrivals
        self._count += len(entries)

    def drop(self, entry: E) -> None:
        """Forget an entry that waits. A group keeps it, for the sake of the others' bits, while these are wanted."""
        queue = self._clients[entry.client].queues[entry.group or entry.key]
        if entry.group is None:
            del queue[entry]
            self._count -= 1
        else:
            entry.group.wanted -= 1
            if not entry.group.wanted:
                self._count -= len(queue)
                queue.clear()
        self._tidy(entry)

    def clear(self) -> list[E]:
        """Forget everything, and return it."""
        found = [entry for client in self._clients.values() for queue in client.queues.values() for entry in queue]
        self._clients.clear()
        self._ahead.clear()
        self._count = self._now = 0
        return found

    def next(self) -> list[E]:
        """The next batch, taken off the queue; empty where nothing waits."""
        if not self._clients:
            return []
        first = min(self._clients.values(), key=lambda client: client.served)
        key = first.oldest()
        if isinstance(key, bytes):
            batch = list(self._mix(key))
        else:
            batch = list(first.queues[key])
            for entry in batch:
                self._take(entry)
        self._now = first.served
        self._ahead = {name: served for name, served in self._ahead.items() if served > self._now}
        return batch

    def _mix(self, key: bytes) -> Iterator[E]:
        """Entries of one batch, each taken off the queue: first the oldest of the client whose turn it is."""
        turns = [(client.served, i, client) for i, client in enumerate(self._clients.values()) if key in client.queues]
        heapify(turns)
        rows = longest = size = 0
        ids: set[int] = set()
        while turns:
            _, i, client = heappop(turns)
            queue = client.queues[key]
            entry = self._fitting(queue, rows, longest, size, ids) if rows else next(iter(queue))
            if entry is None:
                continue  # nor will it later: the batch only grows
            rows, longest, size = rows + 1, max(longest, entry.tokens), size + entry.size
            ids.add(entry.item_id)
            self._take(entry)
            if key in client.queues:
                heappush(turns, (client.served, i, client))
            yield entry

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

    def _take(self, entry: E) -> None:
        client = self._clients[entry.client]
        del client.queues[entry.group or entry.key][entry]
        client.served += entry.tokens
        self._count -= 1
        self._tidy(entry)

    def _tidy(self, entry: E) -> None:
        """Forget the entry's queue where it is empty, and its client where all are: but how far it is ahead."""
        client = self._clients[entry.client]
        if not client.queues[entry.group or entry.key]:
            del client.queues[entry.group or entry.key]
        if not client.queues:
            del self._clients[entry.client]
            if client.served > self._now:
                self._ahead[entry.client] = client.served
