"""Stored signals as a service: a dataset that may still grow, and the call that replays it from any cursor."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from limbeck.data import TokenSequence, read_sequences
from limbeck.data.store import SequenceFile
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.runs.label import folder_of
from limbeck.runs.prepare import TRAIN
from limbeck.runs.stage import Record
from limbeck.service.config import Timing
from limbeck.service.requests import expect
from limbeck.service.wire import Pieces, size_of, stored_signal, stored_signals
from limbeck.signals import SignalHeader, SignalStore
from limbeck.signals.journal import JOURNAL, Listed, read_journal
from limbeck.signals.messages import header_message
from limbeck.signals.shard import Entry, Shard
from limbeck.signals.store import HEADER
from limbeck.v1 import teacher_service_pb2 as pb

PART_BYTES = 1 << 20  # that a message aims at
MOST_PART_BYTES = (4 << 20) - (1 << 16)  # gRPC's default limit of a message, less what is around
OPEN_SHARDS = 8  # of a dataset, mapped
KEPT_PARTS = 16  # of a dataset, encoded: streams side by side share them

Stamp = tuple[int, int, int]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Part:
    """An encoded StreamSignalsResponse; `last` is its last sequence."""

    message: bytes
    last: int


@dataclass
class _Shelf:
    """What is known of a dataset as long as it stays the same one: it only grows."""

    sequences: SequenceFile
    header: SignalHeader
    stamps: tuple[Stamp | None, ...]
    journal: Stamp | None = None
    of: dict[int, Listed] = field(default_factory=dict)
    stored: int = 0  # sequences from the first on, without a gap
    shards: OrderedDict[str, Shard] = field(default_factory=OrderedDict)
    parts: OrderedDict[tuple[int, bool], Part] = field(default_factory=OrderedDict)


class Dataset:
    """The training rows' signals in a run's folder, also while they are captured.

    Safe to use from many tasks of one event loop: files are read in threads, one at a time.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Raises FOLDER_NOT_OURS for what is no run's folder, STORE_DAMAGED where a run has no rows or no signals.

        CAPABILITY_MISSING for what clients could not see: signals of some tokens alone, tokens that weigh less.
        """
        self.name, self._folder = name, Path(folder)
        if not (self._folder / TRAIN).is_file():
            hint = "give the `output` of a recipe that was labelled or run"
            problem = Problem("no run with prepared rows is here", file=str(folder), hint=hint)
            raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem])
        self._store = folder_of(self._folder, TRAIN)
        self._lock = asyncio.Lock()
        self._shelf = self._open()

    @property
    def message(self) -> pb.Dataset:
        """As clients see it."""
        shelf = self._shelf
        return pb.Dataset(name=self.name, total=len(shelf.sequences), header=header_message(shelf.header))

    async def current(self) -> _Shelf:
        """The dataset as it is now. Raises SERVER_UNAVAILABLE while it is being made anew."""
        return await self._alone(self._refresh)

    async def part(self, shelf: _Shelf, after: int, tokens: bool) -> Part | None:
        """What follows sequence `after`, about 1 MiB; None where it is still to come. Raises STORE_DAMAGED."""
        kept = shelf.parts.get((after, tokens))
        if kept is not None:
            return kept
        try:
            return await self._alone(self._part, shelf, after, tokens)
        except LimbeckError:
            if shelf.stamps == self._stamps():
                raise
            return None  # it is being made anew, which `current` tells

    async def _alone(self, work: Callable[..., V], *about: Any) -> V:
        """Work in a thread, one at a time: the next one waits for it also where its own call has been cancelled."""

        async def locked() -> V:
            async with self._lock:
                return await asyncio.to_thread(work, *about)

        return await asyncio.shield(locked())

    # ---------------------------------------------------------------------------------------------------- in a thread

    def _open(self) -> _Shelf:
        stamps = self._stamps()
        sequences = read_sequences(self._folder / TRAIN)
        assert isinstance(sequences, SequenceFile)
        shelf = _Shelf(sequences, SignalStore(self._store).header, stamps)
        _refuse(shelf, self._folder)
        self._read_journal(shelf)
        return shelf

    def _stamps(self) -> tuple[Stamp | None, ...]:
        return _stamp(self._folder / TRAIN), _stamp(self._store / HEADER)

    def _refresh(self) -> _Shelf:
        if self._shelf.stamps != self._stamps():
            try:
                self._shelf = self._open()
            except LimbeckError as error:
                message = f"The dataset {self.name} is being made anew; ask again later."
                raise LimbeckError(Reason.SERVER_UNAVAILABLE, message) from error
        else:
            self._read_journal(self._shelf)
        return self._shelf

    def _read_journal(self, shelf: _Shelf) -> None:
        stamp = _stamp(self._store / JOURNAL)
        if stamp == shelf.journal:
            return
        listed = read_journal(self._store)
        shelf.of = {index: shard for shard in listed.values() for index in shard.indexes}
        for name in shelf.shards.keys() - listed.keys():
            del shelf.shards[name]
        while shelf.stored in shelf.of:
            shelf.stored += 1
        shelf.journal = stamp

    def _part(self, shelf: _Shelf, after: int, tokens: bool) -> Part | None:
        kept = shelf.parts.get((after, tokens))
        if kept is not None:
            return kept  # of a stream that was first
        if after not in shelf.of and not self._comes(shelf, after):
            problem = Problem(f"sequence {after + 1} has no signal, and the capture has ended", file=str(self._store))
            raise LimbeckError(Reason.STORE_DAMAGED, problems=[problem])
        signals: list[Pieces] = []
        end, size = after, 0
        while end < len(shelf.sequences) and size < PART_BYTES and (listed := shelf.of.get(end)) is not None:
            try:
                entry = self._shard(shelf, listed).entry(end)
                signal = stored_signal(entry, _tokens(entry, shelf.sequences[end]) if tokens else None)
            except LimbeckError:
                if not signals:
                    raise
                break  # what comes before the damage is sent first
            if size and size + size_of(signal) > MOST_PART_BYTES:
                break
            size += size_of(signal)
            signals.append(signal)
            end += 1
        if end == after:
            return None
        message = stored_signals(signals)
        return _keep(shelf.parts, (after, tokens), Part(message, end), KEPT_PARTS)

    def _comes(self, shelf: _Shelf, index: int) -> bool:
        """Whether a signal that is not there may still come. Looks again, since the capture may just have ended."""
        if not Record(self._folder, "label").complete:
            return True
        self._read_journal(shelf)
        return index in shelf.of

    def _shard(self, shelf: _Shelf, listed: Listed) -> Shard:
        found = shelf.shards.get(listed.name)
        if found is None:
            what = listed.damage(self._store)
            try:
                found = Shard(self._store / listed.name) if what is None else None
            except OSError as error:
                what = f"the file cannot be read: {error.strerror}"
            if found is None:
                raise LimbeckError(Reason.STORE_DAMAGED, problems=[listed.problem(self._store, what or "", first=1)])
        return _keep(shelf.shards, listed.name, found, OPEN_SHARDS)


async def replay(
    dataset: Dataset, request: pb.StreamSignalsRequest, timing: Timing, check: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """The answers to a StreamSignals call. `check` is asked now and then and raises what ends the call.

    Raises CURSOR_INVALID, TOKENIZER_MISMATCH, TEACHER_MISMATCH (also where the dataset was made anew meanwhile),
    STORE_DAMAGED, and SERVER_UNAVAILABLE where nothing new came for long.
    """
    shelf = first = await dataset.current()
    after, total = request.after_sequence, len(shelf.sequences)
    if after > total:
        problem = Problem(f"after_sequence is {after}, the dataset has {total}", field="after_sequence")
        raise LimbeckError(Reason.CURSOR_INVALID, problems=[problem])
    expect(request.expectation, shelf.header)
    yield pb.StreamSignalsResponse(started=pb.SignalsStarted(dataset=dataset.message)).SerializeToString()
    checked = said = news = time.monotonic()
    ahead: asyncio.Task[Part | None] | None = None  # while a part is sent, the next is read
    try:
        while after < total:
            part = await (ahead or dataset.part(shelf, after, request.with_tokens))
            ahead = None
            if part is not None:
                after = part.last
                if after < total:
                    ahead = asyncio.create_task(dataset.part(shelf, after, request.with_tokens))
                yield part.message
                said = news = time.monotonic()
            else:
                await asyncio.sleep(timing.poll)
                shelf = await dataset.current()
                if shelf is not first:
                    message = "The dataset was made anew; begin with its first sequence."
                    raise LimbeckError(Reason.TEACHER_MISMATCH, message)
            now = time.monotonic()
            if now - checked >= timing.poll:
                check()
                checked = now
            if now - news >= timing.idle:
                message = f"Nothing new came for {timing.idle:g} s; ask again with the last sequence that you have."
                raise LimbeckError(Reason.SERVER_UNAVAILABLE, message)
            if now - said >= timing.alive:
                yield pb.StreamSignalsResponse(alive=pb.Alive(position=shelf.stored)).SerializeToString()
                said = now
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


def _refuse(shelf: _Shelf, folder: Path) -> None:
    """Raise CAPABILITY_MISSING for what the messages of a stream have no place for: it would be lost without a word."""
    faults = {
        "the teacher said nothing of some of its trained tokens": shelf.header.partial,
        "tokens of its rationales have weights of their own (data.rationale)": shelf.sequences.weighted,
    }
    hint = "train where the run's folder is: limbeck run"
    problems = [
        Problem(f"{what}, which cannot be streamed", file=str(folder), hint=hint)
        for what, is_so in faults.items()
        if is_so
    ]
    if problems:
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=problems)


def _tokens(entry: Entry, sequence: TokenSequence) -> pb.Tokens:
    ids = sequence.ids.astype("<i4").tobytes()
    if hashlib.sha256(ids).digest() != entry.ids_digest:
        problem = Problem(f"sequence {entry.index + 1} has other tokens than its signal was captured for")
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[problem])
    pair = sequence.pair if sequence.pair >= 0 else None
    trained = sequence.trained.astype("u1").tobytes()
    return pb.Tokens(ids=ids, trained=trained, pair=pair, rejected=not sequence.chosen)


def _stamp(path: Path) -> Stamp | None:
    """What changes when a file is replaced or grows."""
    with suppress(OSError):
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
    return None


def _keep(shelf: OrderedDict[K, V], key: K, value: V, most: int) -> V:
    """Put in front what was used last; forget what was not used for longest."""
    shelf[key] = value
    shelf.move_to_end(key)
    while len(shelf) > most:
        shelf.popitem(last=False)
    return value
