"""One file of stored signals: the codec's bytes in Arrow columns, one row a sequence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from limbeck.errors import LimbeckError, Reason
from limbeck.files import sha256_file
from limbeck.signals.codec import Packed
from limbeck.signals.header import SignalHeader

_METADATA = b"limbeck.signals"


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored sequence: its `index`, its `length` in tokens, sha256 of its ids (int32 LE), its signal."""

    index: int
    length: int
    ids_digest: bytes
    packed: Packed


def ids_digest(ids: npt.NDArray[np.int32]) -> bytes:
    """sha256 of token ids as int32 little-endian."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).digest()


def to_bytes(entries: Sequence[Entry], header: SignalHeader) -> bytes:
    """An Arrow IPC file of one record batch, sorted by index: the same bytes for the same entries."""
    entries = sorted(entries, key=lambda entry: entry.index)
    columns: dict[str, pa.Array] = {
        "index": pa.array([entry.index for entry in entries], pa.int64()),
        "length": pa.array([entry.length for entry in entries], pa.int32()),
        "ids_digest": pa.array([entry.ids_digest for entry in entries], pa.binary(32)),
        "first_row": pa.array([entry.packed.first_row for entry in entries], pa.int32()),
        "n": pa.array([entry.packed.n for entry in entries], pa.int32()),
    }
    for name in header.row_bytes:
        columns[name] = pa.array([entry.packed.fields[name] for entry in entries], pa.large_binary())
    batch = pa.record_batch(columns, metadata={_METADATA: header.text().encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


class Shard:
    """A memory-mapped shard file: reads touch only the pages that they need, and no file stays open."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            self._batch = reader.get_batch(0)
            metadata = reader.schema.metadata or {}
        self.header = SignalHeader.from_json(json.loads(metadata[_METADATA]))
        self.indexes: npt.NDArray[np.int64] = self._batch.column("index").to_numpy()
        self._row = {int(index): row for row, index in enumerate(self.indexes)}

    def entry(self, index: int) -> Entry:
        """The entry of a sequence. Its buffers are views of the file."""

        def cell(name: str) -> Any:
            return self._batch.column(name)[row]

        row = self._row[index]
        fields = {name: cell(name).as_buffer() for name in self.header.row_bytes}
        packed = Packed(cell("first_row").as_py(), cell("n").as_py(), fields)
        return Entry(index, cell("length").as_py(), cell("ids_digest").as_py(), packed)


def damage(path: Path, size: int, sha256: str, indexes: Sequence[int]) -> str | None:
    """What is wrong with a shard file of which the journal says this; None where it is whole.

    A process reads an unchanged file once for this, however often it asks.
    """
    try:
        held = path.stat().st_size
        if held != size:
            return f"the file holds {held:,} bytes, {size:,} were written"
        if sha256_file(path) != sha256:
            return "the checksum differs: bytes were changed or lost"
        if Shard(path).indexes.tolist() != list(indexes):
            return "the journal names other sequences than the file holds"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return None


def adoptable(path: Path, header: SignalHeader) -> Shard | None:
    """A shard whose journal line was lost, where its name's checksum proves it whole and its header fits."""
    if not path.stem.endswith(f"-{sha256_file(path)[:16]}"):
        return None
    try:
        shard = Shard(path)
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    except LimbeckError as error:
        if error.reason is Reason.SIGNAL_INVALID:
            return None
        raise
    return shard if shard.header == header else None
