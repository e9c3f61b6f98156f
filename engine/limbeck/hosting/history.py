"""A run's events.jsonl as watchers read it: from any cursor, as it grows, in bounded memory."""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from google.protobuf.json_format import Parse, ParseError

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import unlinked
from limbeck.hosting.public import Public, make_public
from limbeck.hosting.record import ENDED, Record
from limbeck.v1.event_pb2 import Event

RECENT_BYTES = 512 << 10  # encoded, of the newest events, for all watchers
BLOCK_BYTES = 256 << 10  # of the file: what is read at once of older events
KEPT_BLOCKS = 4
SLICE_BYTES = 1 << 20  # read at once of what is new
AT_ONCE_BYTES = 32 << 10  # so little is read without a thread


class Line(NamedTuple):
    """An event: its sequence and its encoded message."""

    sequence: int
    message: bytes


class History:
    """The events of one run, which `record` follows. Belongs to the server's event loop.

    What is new is read once, by :meth:`advance`, for the record and for all watchers. Texts of events are told as
    `public` says them: without paths of this machine, which the file may hold.
    """

    def __init__(self, record: Record, file: Path, public: Public) -> None:
        self._record, self._file, self._public = record, file, public
        self._recent: deque[Line] = deque()
        self._recent_bytes = 0
        self._starts: list[tuple[int, int]] | None = None  # (sequence, offset) of the first event of each block
        self._blocks: OrderedDict[int, list[Line]] = OrderedDict()
        self._advancing, self._looking_back = asyncio.Lock(), asyncio.Lock()
        self._bell = asyncio.Event()
        self.watchers = 0  # that wait

    @property
    def last(self) -> int:
        """Sequence of the last event, 0 before the first."""
        return self._record.run.last_sequence

    @property
    def oldest(self) -> int:
        """Sequence of the oldest event that is kept; one above the last where none is."""
        return self.last + 1 if self._record.expired else 1

    @property
    def over(self) -> bool:
        """Whether nothing follows the last event, unless the run is resumed."""
        return self._record.state in ENDED and not self._record.unsaid.events

    @property
    def behind(self) -> bool:
        """Whether the run's state has changed, and the history does not tell it yet."""
        return bool(self._record.unsaid.events)

    async def read(self, after: int | None, most_bytes: int) -> list[bytes]:
        """Encoded events that follow `after`, None for the oldest: at least one, if there is any.

        Raises CURSOR_INVALID, with the oldest, for a cursor that is not kept any more or was never said; LOG_DAMAGED.
        """
        after = self.oldest - 1 if after is None else after
        if after < self.oldest - 1 or after > self.last or (self._record.expired and self.last):
            raise self._outside(after)
        if after == self.last:
            return []
        if self._recent and self._recent[0].sequence <= after + 1:
            return _cut(self._recent, bisect_right(self._recent, after, key=lambda line: line.sequence), most_bytes)
        async with self._looking_back:  # watchers side by side read it once
            try:
                block = await asyncio.to_thread(self._block_after, after)
            except FileNotFoundError:
                raise self._outside(after) from None
        start = bisect_right(block, after, key=lambda line: line.sequence)
        end = bisect_right(block, self.last, key=lambda line: line.sequence)
        if found := _cut(block[:end], start, most_bytes):
            return found
        raise self._damaged(f"events after {after} are gone")

    async def changed(self, after: int, timeout: float) -> None:
        """Return when there is more after `after`, when the run is over, or after `timeout` seconds."""
        self.watchers += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while self.last <= after and not self.over and not self._record.expired:
                        await self._bell.wait()
        finally:
            self.watchers -= 1

    def ring(self) -> None:
        """Let all that wait look again."""
        self._bell.set()
        self._bell = asyncio.Event()

    def rest(self) -> None:
        """Give the memory back, where nobody is just reading."""
        if self._looking_back.locked():
            return
        self._recent.clear()
        self._recent_bytes = 0
        self._blocks.clear()
        self._starts = None

    def grown(self) -> bool:
        """Whether the file is another than was read. Raises FileNotFoundError where there is none."""
        return self._file.stat().st_size != self._record.offset

    async def advance(self, until: int | None = None) -> None:
        """Take in what is new, up to sequence `until`: what a process that writes there has said to be on disk.

        Raises LOG_DAMAGED where a line is no event; what comes before it is taken in.
        """
        async with self._advancing:
            while until is None or self.last < until:
                if not await self._advance(until):
                    break

    async def _advance(self, until: int | None) -> bool:
        offset = self._record.offset
        try:
            size = self._file.stat().st_size
        except FileNotFoundError:
            return False
        if size < offset:  # whoever writes there has taken back what could not be put on disk
            offset = self._begin_again()
        if size <= offset:
            return False
        read = self._read_slice(offset) if size - offset <= AT_ONCE_BYTES else None
        if read is None:
            read = await asyncio.to_thread(self._read_slice, offset)
        lines, fault = read
        taken = False
        for event, length in lines:
            if until is not None and event.sequence > until:
                fault = None  # it comes later
                break
            self._record.offset += length
            taken = True
            if event.sequence > self.last:
                make_public(event, self._public)
                self._record.apply(event)
                self._remember(Line(event.sequence, event.SerializeToString()))
        if taken:
            self._record.dirty = True
            self.ring()
        if fault is not None:
            raise fault
        return taken

    def _begin_again(self) -> int:
        self._record.offset = 0
        self._starts = None
        self._blocks.clear()
        return 0

    def _remember(self, line: Line) -> None:
        self._recent.append(line)
        self._recent_bytes += len(line.message)
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.popleft().message)

    def _outside(self, after: int) -> LimbeckError:
        kept = f"kept are events from {self.oldest} on, the last is {self.last}"
        if self._record.expired:
            kept = "none is kept any more: the run's folder is gone"
        problem = Problem(f"{after} is no position of this run's history: {kept}", field="after_sequence")
        return LimbeckError(Reason.CURSOR_INVALID, problems=[problem])

    def _damaged(self, message: str, hint: str | None = None) -> LimbeckError:
        problem = Problem(message, file=self._public.file(str(self._file)), hint=hint)
        return LimbeckError(Reason.LOG_DAMAGED, problems=[problem])

    # --------------------------------------------------------------------------------------------------- in a thread

    def _block_after(self, after: int) -> list[Line]:
        """The block with the event that follows `after`, up to its end as it is now."""
        starts = self._starts
        if not starts:
            starts = list(self._block_starts(0))
        else:  # what has come since: the last block was not full
            starts[-1:] = list(self._block_starts(starts[-1][1])) or starts[-1:]
        self._starts = starts
        number = max(bisect_right(starts, after + 1, key=lambda start: start[0]) - 1, 0)
        block: list[Line] = []
        while number < len(starts) and not (block and block[-1].sequence > after):  # numbers may have been lost
            block = self._block(starts, number, after)
            number += 1
        return block

    def _block(self, starts: list[tuple[int, int]], number: int, after: int) -> list[Line]:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        end = starts[number + 1][1] if number + 1 < len(starts) else None
        lines, fault = self._read_slice(starts[number][1], end)
        for event, _ in lines:
            make_public(event, self._public)
        block = [Line(event.sequence, event.SerializeToString()) for event, _ in lines]
        if fault is not None and not (block and block[-1].sequence > after):
            raise fault
        if end is not None and fault is None:
            self._blocks[number] = block
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _opened(self) -> IO[bytes]:
        """The file; what a run's process has linked there is not told to its watchers. Raises LOG_DAMAGED."""
        try:
            return open(self._file, "rb", opener=unlinked)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._damaged("it is a link") from error

    def _read_slice(self, offset: int, end: int | None = None) -> tuple[list[tuple[Event, int]], LimbeckError | None]:
        """Events of the lines from byte `offset`, with the length of each; what is wrong with the line that follows."""
        found = []
        with self._opened() as stream:
            stream.seek(offset)
            size = 0
            while (size < SLICE_BYTES if end is None else offset + size < end) and (raw := stream.readline()):
                if not raw.endswith(b"\n"):
                    break  # it is being written, or was torn by a crash: whoever writes next cuts it off
                try:
                    found.append((Parse(raw, Event(), ignore_unknown_fields=True), len(raw)))
                except (ParseError, UnicodeDecodeError):
                    return found, self._damaged("a line is no event", "lines before it are good")
                size += len(raw)
        return found, None

    def _block_starts(self, offset: int) -> Iterator[tuple[int, int]]:
        """(sequence, offset) of the first event of each block from byte `offset` on, where one begins."""
        due = offset
        with self._opened() as stream:
            stream.seek(offset)
            for raw in stream:
                if not raw.endswith(b"\n"):
                    return
                if offset >= due:
                    try:
                        sequence = Parse(raw, Event(), ignore_unknown_fields=True).sequence
                    except (ParseError, UnicodeDecodeError):
                        return
                    yield sequence, offset
                    due = offset + BLOCK_BYTES
                offset += len(raw)


def _cut(lines: deque[Line] | list[Line], start: int, most_bytes: int) -> list[bytes]:
    found: list[bytes] = []
    size = 0
    for number in range(start, len(lines)):
        size += len(lines[number].message)
        if found and size > most_bytes:
            break
        found.append(lines[number].message)
    return found
