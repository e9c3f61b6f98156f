"""Where the signals of the next batch come from: the store, or a teacher that is asked ahead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Protocol, runtime_checkable

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, Teacher, Want
from limbeck.signals import Signal, SignalStore

Signals = list[Signal | None]
CLOSING = 5.0  # seconds that questions which are dropped may take to end


@runtime_checkable
class BatchSource(Protocol):
    """Gives the signals of a micro-batch; the trainer does not know from where.

    `lookahead`: how many micro-batches it likes to hear of beforehand, by `ahead`. `temperatures`: those of its top_k
    answers where these are fixed, else None. `signals_for` gives one signal, or None, for each sequence, in order.
    """

    lookahead: int
    temperatures: tuple[float, ...] | None

    def ahead(self, sequences: Sequence[TokenSequence]) -> None: ...

    def signals_for(self, sequences: Sequence[TokenSequence]) -> Signals: ...

    def close(self) -> None: ...


class NoSource:
    """For losses that need no signal."""

    lookahead = 0
    temperatures: tuple[float, ...] | None = None

    def ahead(self, sequences: Sequence[TokenSequence]) -> None:
        """Nothing to prepare."""

    def signals_for(self, sequences: Sequence[TokenSequence]) -> Signals:
        """None for each."""
        return [None] * len(sequences)

    def close(self) -> None:
        """Nothing to close."""


class CachedSource:
    """Signals from a store. Raises what the store raises: SIGNAL_INVALID, STORE_DAMAGED."""

    lookahead = 0

    def __init__(self, store: SignalStore) -> None:
        self._store = store
        self.temperatures: tuple[float, ...] | None = tuple(store.header.temperatures)

    def ahead(self, sequences: Sequence[TokenSequence]) -> None:
        """Nothing to prepare: shards are memory-mapped."""

    def signals_for(self, sequences: Sequence[TokenSequence]) -> Signals:
        """The stored signal of each sequence; None for one without a trained token."""
        return [self._store.get(sequence) if len(sequence.kept) else None for sequence in sequences]

    def close(self) -> None:
        """Nothing to close."""


class OnlineSource:
    """Asks the teacher for the coming `prefetch` micro-batches while the student trains.

    One question a micro-batch, which the plan fixes: the same training asks the same questions, however often it is
    resumed. top_k answers pass through the codec's quantisation, so they are what a store would hold.
    """

    def __init__(self, teacher: Teacher, want: Want, prefetch: int = 2) -> None:
        self.lookahead = max(0, prefetch)
        self.temperatures: tuple[float, ...] | None = tuple(want.temperatures)
        self._teacher = teacher
        self._want = want
        self._asked: dict[tuple[int, ...], Future[dict[int, Signal]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def ahead(self, sequences: Sequence[TokenSequence]) -> None:
        """Ask for a micro-batch that will be trained soon."""
        wanted = [sequence for sequence in sequences if len(sequence.kept)]
        key = _key(wanted)
        if wanted and key not in self._asked:
            self._asked[key] = self._submit(wanted)

    def signals_for(self, sequences: Sequence[TokenSequence]) -> Signals:
        """The teacher's answers; asks now for what was not asked ahead. Raises SCORING_FAILED for one left out."""
        self.ahead(sequences)
        wanted = [sequence for sequence in sequences if len(sequence.kept)]
        answers = self._asked.pop(_key(wanted)).result() if wanted else {}
        missing = [sequence for sequence in wanted if sequence.index not in answers]
        if missing:
            problems = [Problem("the teacher gave no signal", file=s.source, line=s.line) for s in missing]
            raise LimbeckError(Reason.SCORING_FAILED, problems=problems)
        return [answers[sequence.index] if len(sequence.kept) else None for sequence in sequences]

    def close(self) -> None:
        """Drop what was asked and not used; a second call does nothing. The teacher stays open: it is the caller's."""
        self._asked.clear()
        loop, self._loop = self._loop, None
        if loop is not None:
            with suppress(TimeoutError):  # a teacher that computes may take its time
                asyncio.run_coroutine_threadsafe(_drop(), loop).result(CLOSING)
            loop.call_soon_threadsafe(loop.stop)

    async def _score(self, sequences: Sequence[TokenSequence]) -> dict[int, Signal]:
        items = [ScoreItem(item_id=s.index, ids=s.ids, first_row=s.first_row, n=s.n, seed=s.index) for s in sequences]
        async with self._turn, aclosing(self._teacher.score(items, self._want)) as answers:
            return {item_id: signal async for item_id, signal in answers}

    def _submit(self, sequences: Sequence[TokenSequence]) -> Future[dict[int, Signal]]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._turn = asyncio.Lock()  # questions are answered in the order asked, one at a time
            threading.Thread(target=_serve, args=(self._loop,), name="limbeck-teacher", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(self._score(sequences), self._loop)


def _key(sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    return tuple(sequence.index for sequence in sequences)


async def _drop() -> None:
    """Cancel all questions of the loop and let them end: asyncio tells of a task that is cut off on stderr."""
    questions = asyncio.all_tasks() - {asyncio.current_task()}
    for question in questions:
        question.cancel()
    await asyncio.gather(*questions, return_exceptions=True)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
