"""The sequences of a run on disk: one Arrow file a split, memory-mapped, every batch with its checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import write_atomic

FORMAT = b"limbeck.sequences/1"
WEIGHTED = b"limbeck.sequences/2"  # the same with a column of weights, which only files have that need it
_BATCH = 256  # sequences checked and read at once


def write_sequences(path: Path, sequences: Sequence[TokenSequence]) -> None:
    """Write all of a split's sequences, or nothing. Raises DISK_FULL."""
    import pyarrow as pa

    weighted = any(sequence.weights is not None for sequence in sequences)
    schema = _schema(weighted)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(sequences), _BATCH):
            part = sequences[start : start + _BATCH]
            columns = [
                [sequence.index for sequence in part],
                [sequence.ids.astype("<i4").tobytes() for sequence in part],
                [np.packbits(sequence.trained, bitorder="little").tobytes() for sequence in part],
                [sequence.offsets.astype("<i4").tobytes() for sequence in part],
                [sequence.source for sequence in part],
                [sequence.line for sequence in part],
                [sequence.pair for sequence in part],
                [sequence.chosen for sequence in part],
            ]
            if weighted:
                columns.append([b"" if s.weights is None else s.weights.astype("<f4").tobytes() for s in part])
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            batch = pa.record_batch(arrays, schema=schema)
            writer.write_batch(batch, custom_metadata={"crc32": str(_checksum(batch)), "first": str(start)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_sequences(path: Path) -> Sequence[TokenSequence]:
    """A split's sequences, read from the mapped file when they are asked for. Raises STORE_DAMAGED, then or later."""
    return SequenceFile(path)


class SequenceFile(Sequence[TokenSequence]):
    """A file of :func:`write_sequences`. One batch at a time is checked against its checksum and kept."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self._at: tuple[int, dict[str, list[Any]]] | None = None
        try:
            self._reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
            format_ = (self._reader.schema.metadata or {})[b"format"]
            # whether some of its tokens weigh more or less than others
            self.weighted = format_ == WEIGHTED
            if format_ not in (FORMAT, WEIGHTED) or not self._reader.schema.equals(_schema(self.weighted)):
                raise ValueError("it is not of the format that this version writes")
            self._batches: int = self._reader.num_record_batches
            last = self._rows(self._batches - 1) if self._batches else {"index": []}
        except FileNotFoundError as error:
            raise self._damaged("it is not there") from error
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._damaged(str(error)) from error
        self._length = max(self._batches - 1, 0) * _BATCH + len(last["index"])

    def __len__(self) -> int:
        return int(self._length)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...

    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._get(index % self._length)

    def __iter__(self) -> Iterator[TokenSequence]:
        return (self._get(index) for index in range(self._length))

    def _get(self, index: int) -> TokenSequence:
        number, place = divmod(index, _BATCH)
        if self._at is None or self._at[0] != number:
            self._at = (number, self._rows(number))
        rows = self._at[1]
        ids = np.frombuffer(rows["ids"][place], dtype="<i4").astype(np.int32)
        bits = np.frombuffer(rows["trained"][place], dtype=np.uint8)
        weights = rows["weights"][place] if self.weighted else b""
        return TokenSequence(
            index=rows["index"][place],
            ids=ids,
            trained=np.unpackbits(bits, count=len(ids), bitorder="little").astype(np.bool_),
            offsets=np.frombuffer(rows["offsets"][place], dtype="<i4").astype(np.int32).reshape(len(ids), 2),
            source=rows["source"][place],
            line=rows["line"][place],
            pair=rows["pair"][place],
            chosen=rows["chosen"][place],
            weights=np.frombuffer(weights, dtype="<f4").astype(np.float32) if weights else None,
        )

    def _rows(self, number: int) -> dict[str, list[Any]]:
        import pyarrow as pa

        try:
            found = self._reader.get_batch_with_custom_metadata(number)
            batch, metadata = found.batch, found.custom_metadata or {}
            batch.validate(full=True)
            if metadata[b"crc32"] != str(_checksum(batch)).encode() or metadata[b"first"] != b"%d" % (number * _BATCH):
                raise ValueError("the checksum does not fit")
            short = batch.num_rows == 0 or batch.num_rows > _BATCH
            if short or (number < self._batches - 1 and batch.num_rows != _BATCH):
                raise ValueError("rows are missing")
            columns: dict[str, list[Any]] = batch.to_pydict()
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._damaged(f"batch {number}: {error}") from error
        return columns

    def _damaged(self, what: str) -> LimbeckError:
        hint = "delete it and give the command again: it is made anew from the rows"
        return LimbeckError(Reason.STORE_DAMAGED, problems=[Problem(what, file=str(self.path), hint=hint)])


def _schema(weighted: bool) -> Any:
    import pyarrow as pa

    fields = [
        ("index", pa.int64()),
        ("ids", pa.large_binary()),
        ("trained", pa.large_binary()),
        ("offsets", pa.large_binary()),
        ("source", pa.string()),
        ("line", pa.int64()),
        ("pair", pa.int64()),
        ("chosen", pa.bool_()),
    ]
    if weighted:
        fields.append(("weights", pa.large_binary()))
    metadata = {b"format": WEIGHTED if weighted else FORMAT}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata=metadata)


def _checksum(batch: Any) -> int:
    """crc32 over the values of every column, whatever the buffers' padding holds."""
    crc = 0
    for column in batch.to_pydict().values():
        for value in column:
            raw = value if isinstance(value, bytes) else repr(value).encode()
            crc = zlib.crc32(raw, zlib.crc32(b"%d:" % len(raw), crc))
    return crc
