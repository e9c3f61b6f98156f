"""Observers of events: each on a thread and a bounded queue of its own, so that none can hold up a run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from limbeck.v1.event_pb2 import Event, Warning

QUEUE_LENGTH = 1000
DRAIN_SECONDS = 5.0


class ObserverThread:
    """Hands events to one observer, in order. The oldest waiting event is dropped where it is too slow."""

    def __init__(self, name: str, call: Callable[[Event], object], length: int = QUEUE_LENGTH) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.dropped = 0
        self._call = call
        self._length = length
        self._waiting: deque[Event] = deque()
        self._busy = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name=f"observer {name}", daemon=True).start()

    def put(self, event: Event) -> None:
        """Queue a copy of `event`; never waits."""
        copy = Event()
        copy.CopyFrom(event)
        with self._changed:
            if self.error is not None:
                return
            if len(self._waiting) == self._length:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(copy)
            self._changed.notify_all()

    def drain(self, deadline: float) -> int:
        """Wait until all is handed over, or until `deadline` (time.monotonic). Returns how many are left."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.error is not None or not (self._waiting or self._busy),
                max(0.0, deadline - time.monotonic()),
            )
            return 0 if self.error is not None else len(self._waiting) + self._busy

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                event = self._waiting.popleft()
                self._busy = True
            error: BaseException | None = None
            try:
                self._call(event)
            except BaseException as raised:  # a plugin that calls sys.exit() must not stop the run either
                error = raised
            with self._changed:
                self._busy = False
                self.error = error
                if error is not None:
                    self._waiting.clear()
                self._changed.notify_all()
            if error is not None:
                return


class Observers:
    """All observers of a run. What must be said of them is handed to `warn`, once each."""

    def __init__(self, observers: Sequence[tuple[str, Callable[[Event], object]]], length: int = QUEUE_LENGTH) -> None:
        self._threads = [ObserverThread(name, call, length) for name, call in observers]
        self._told: set[tuple[str, str]] = set()

    def put(self, event: Event) -> None:
        """Queue `event` for every observer that still works."""
        for thread in self._threads:
            thread.put(event)

    def faults(self) -> list[Warning]:
        """What went wrong since the last call: a newly disabled observer, a queue that overflowed first."""
        found = []
        for thread in self._threads:
            if thread.error is not None and self._first(thread, "raised"):
                kind, text = type(thread.error).__name__, str(thread.error)
                message = f"observer {thread.name} raised {kind}: {text}; it gets no more events of this run"
                found.append(Warning(reason="OBSERVER_DISABLED", message=message))
            if thread.dropped and self._first(thread, "slow"):
                message = f"observer {thread.name} is too slow; its oldest events are dropped"
                found.append(Warning(reason="OBSERVER_SLOW", message=message))
        return found

    def drain(self, seconds: float) -> list[Warning]:
        """Hand over what waits, for at most `seconds` in all; says what was lost."""
        deadline = time.monotonic() + seconds
        left = {thread: thread.drain(deadline) for thread in self._threads}
        found = self.faults()
        for thread, waiting in left.items():
            if thread.dropped + waiting and self._first(thread, "lost"):
                message = f"observer {thread.name} did not get {thread.dropped + waiting} events of this attempt"
                found.append(Warning(reason="OBSERVER_SLOW", message=message))
        return found

    def _first(self, thread: ObserverThread, what: str) -> bool:
        fresh = (thread.name, what) not in self._told
        self._told.add((thread.name, what))
        return fresh
