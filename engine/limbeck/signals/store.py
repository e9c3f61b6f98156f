"""The signal store: a folder of shard files, each whole or not there, with a journal that names them.

``header.json``, ``shard-FIRST-CHECKSUM.arrow``, ``journal.jsonl`` (one line a shard: size, sha256, which sequences)
and ``damaged/`` for what was set aside. A shard is written under another name, fsynced, renamed, then journalled: a
process killed anywhere leaves whole shards only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import AppendLog, fsync_folder, sha256_file, write_atomic
from limbeck.signals.codec import decode, encode
from limbeck.signals.header import SignalHeader
from limbeck.signals.journal import JOURNAL, Listed, read_journal
from limbeck.signals.shard import Entry, Shard, adoptable, ids_digest, to_bytes
from limbeck.signals.signal import Signal

if TYPE_CHECKING:
    from limbeck.data.sequence import TokenSequence

SHARD_BYTES = 32 << 20
HEADER = "header.json"


class SignalStore:
    """Reads stored signals. Each shard's checksum is tested before its first use; safe to send to other processes."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that a SignalWriter wrote, also while it is being written. Raises STORE_DAMAGED."""
        self.folder = Path(folder)
        self.header = _read_header(self.folder)
        self.shards = read_journal(self.folder)
        self._of = {index: shard for shard in self.shards.values() for index in shard.indexes}
        self._open: dict[str, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (SignalStore, (self.folder,))

    @property
    def indexes(self) -> frozenset[int]:
        """Indexes of the sequences whose signals are stored."""
        return frozenset(self._of)

    @property
    def bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(shard.size for shard in self.shards.values())

    def get(self, sequence: TokenSequence) -> Signal:
        """The signal of a sequence.

        Raises SIGNAL_INVALID where there is none, or where it was captured for other tokens or does not cover the
        trained ones (the first of them, where the header says `partial`); STORE_DAMAGED where its shard is damaged.
        """
        listed = self._of.get(sequence.index)
        if listed is None:
            raise _mismatch(sequence, "has no stored signal")
        entry = self._shard(listed).entry(sequence.index)
        if entry.length != len(sequence.ids) or entry.ids_digest != ids_digest(sequence.ids):
            raise _mismatch(
                sequence, f"has {len(sequence.ids)} tokens; its signal was captured for {entry.length} other ones"
            )
        first, end = entry.packed.first_row, entry.packed.first_row + entry.packed.n
        short = end < sequence.first_row + sequence.n and not self.header.partial
        if first > sequence.first_row or short:
            wanted = f"{sequence.first_row} to {sequence.first_row + sequence.n - 1}"
            raise _mismatch(sequence, f"trains on rows {wanted}; its signal covers {first} to {end - 1}")
        return decode(entry.packed, self.header)

    def verify(self) -> list[Problem]:
        """Read every shard and compare its checksum. One problem for each that is damaged, naming its sequences."""
        found = ((shard, shard.damage(self.folder)) for shard in self.shards.values())
        return [shard.problem(self.folder, what) for shard, what in found if what is not None]

    def _shard(self, listed: Listed) -> Shard:
        if listed.name not in self._open:
            what = listed.damage(self.folder)
            if what is not None:
                raise LimbeckError(Reason.STORE_DAMAGED, problems=[listed.problem(self.folder, what)])
            self._open[listed.name] = Shard(self.folder / listed.name)
        return self._open[listed.name]


class SignalWriter:
    """Adds signals to a folder. One writer at a time: the run's lock sees to that.

    Opening a folder that holds some already goes on with it: `done` are the sequences that are stored. Every shard is
    tested; a damaged one is moved to ``damaged/``, told in `repaired`, and its sequences are not in `done`.
    """

    def __init__(self, folder: Path, header: SignalHeader, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Raises RESUME_REFUSED where the folder holds signals of another header, DISK_FULL."""
        self.folder = Path(folder)
        self.header = header
        self.repaired: list[str] = []
        self._shard_bytes = shard_bytes
        self._pending: dict[int, Entry] = {}
        self._pending_bytes = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self._listed = self._read_journal()
        self._journal = AppendLog(self.folder / JOURNAL)
        if self._journal.repaired:
            self.repaired.append(self._journal.repaired)
        self._mend()
        # indexes of the sequences that were added, in this attempt or an earlier one
        self.done: set[int] = {index for shard in self._listed.values() for index in shard.indexes}

    def add(self, sequence: TokenSequence, signal: Signal) -> None:
        """Keep a sequence's signal for the next shard. Raises SIGNAL_INVALID where it does not fit the sequence.

        A header that says `partial` takes a signal of the first rows alone, or of none (n = 0).
        """
        fits = 0 <= signal.n <= sequence.n if self.header.partial else signal.n == sequence.n
        if signal.first_row != sequence.first_row or not fits:
            wanted = f"rows {sequence.first_row} to {sequence.first_row + sequence.n - 1}"
            got = f"{signal.first_row} to {signal.first_row + signal.n - 1}"
            raise _mismatch(sequence, f"needs a signal of {wanted}; the teacher's covers {got}")
        if sequence.index in self.done:
            raise _mismatch(sequence, "has a signal already")
        try:
            packed = encode(signal, self.header)
        except LimbeckError as error:
            raise _mismatch(sequence, f"has a signal that cannot be stored: {error.problems[0].message}") from error
        self._pending[sequence.index] = Entry(sequence.index, len(sequence.ids), ids_digest(sequence.ids), packed)
        self._pending_bytes += sum(map(len, packed.fields.values()))
        self.done.add(sequence.index)
        if self._pending_bytes >= self._shard_bytes:
            self.commit()

    def commit(self) -> None:
        """Put what was added on disk as one shard. Raises DISK_FULL; what was added is kept, for another try."""
        if not self._pending:
            return
        raw = to_bytes(list(self._pending.values()), self.header)
        sha256 = hashlib.sha256(raw).hexdigest()
        name = f"shard-{min(self._pending):08d}-{sha256[:16]}.arrow"  # the same content has the same name
        write_atomic(self.folder / name, raw)
        self._list(Listed(name, len(raw), sha256, tuple(sorted(self._pending))))
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        """Commit and close; a second call does nothing."""
        self.commit()
        self._journal.close()

    def __enter__(self) -> SignalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LimbeckError:
            if error is None:
                raise  # else the first error is the one to tell; what was not stored is captured again
        finally:
            self._journal.close()

    def _begin(self) -> None:
        for partial in self.folder.glob(".*.partial"):
            partial.unlink()
        if not (self.folder / HEADER).exists():
            write_atomic(self.folder / HEADER, json.dumps(self.header.to_json(), indent=2) + "\n")
            return
        there = _read_header(self.folder)
        if there != self.header:
            hint = "write into another folder, or remove this one to capture all signals again"
            problems = [
                Problem(f"the signals stored here are others: {line}", file=str(self.folder), hint=hint)
                for line in self.header.differences(there)
            ]
            raise LimbeckError(Reason.RESUME_REFUSED, problems=problems)

    def _read_journal(self) -> dict[str, Listed]:
        try:
            return read_journal(self.folder)
        except LimbeckError as error:
            self._set_aside(self.folder / JOURNAL, f"{error.problems[0]}; it was made anew from the shards")
            return {}

    def _mend(self) -> None:
        """Make folder and journal agree: damaged shards leave both, whole shards that were not listed are listed."""
        for shard in list(self._listed.values()):
            what = shard.damage(self.folder)
            if what is not None:
                self._set_aside(self.folder / shard.name, str(shard.problem(self.folder, what)))
                self._journal.append({"dropped": shard.name, "why": what})
                del self._listed[shard.name]
        held = {index for shard in self._listed.values() for index in shard.indexes}
        for path in sorted(self.folder.glob("shard-*.arrow")):
            if path.name in self._listed:
                continue
            found = adoptable(path, self.header)
            if found is None or held.intersection(found.indexes.tolist()):
                self._set_aside(path, f"{path.name} is not whole, or holds what other shards hold")
                continue
            self._list(Listed(path.name, path.stat().st_size, sha256_file(path), tuple(found.indexes.tolist())))
            held.update(found.indexes.tolist())

    def _list(self, shard: Listed) -> None:
        self._journal.append(shard.line())
        self._listed[shard.name] = shard

    def _set_aside(self, path: Path, message: str) -> None:
        self.repaired.append(message)
        if not path.exists():
            return
        target = self.folder / "damaged" / path.name
        target.parent.mkdir(exist_ok=True)
        count = 1
        while target.exists():
            count += 1
            target = target.with_name(f"{path.stem}-{count}{path.suffix}")
        path.rename(target)
        fsync_folder(self.folder)


def _read_header(folder: Path) -> SignalHeader:
    path = folder / HEADER
    hint = "remove the folder and label again: all its signals are captured again"
    try:
        return SignalHeader.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        problem = Problem("no signals are stored here: header.json is missing", file=str(folder), hint="label first")
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[problem]) from error
    except (ValueError, AttributeError) as error:
        problem = Problem("the header is not JSON", file=str(path), hint=hint)
        raise LimbeckError(Reason.STORE_DAMAGED, problems=[problem]) from error


def _mismatch(sequence: TokenSequence, message: str) -> LimbeckError:
    problem = Problem(f"sequence {sequence.index} {message}", file=sequence.source, line=sequence.line)
    return LimbeckError(Reason.SIGNAL_INVALID, problems=[problem])
