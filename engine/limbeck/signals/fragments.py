"""A signal in fragments, and put together again: what a worker answers and a client reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, TeacherInfo, Want
from limbeck.signals.codec import Packed, decode, encode
from limbeck.signals.header import SignalHeader
from limbeck.signals.messages import header_for, numbers
from limbeck.signals.signal import Samples, Signal, TokenLogprobs
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

FRAGMENT = 1 << 20  # bytes that a message aims at
LARGEST_ROW = 4 * FRAGMENT - (1 << 16)  # gRPC's default limit of a message, less what is around the row
_PACKED = ("ids_low", "ids_high", "logprobs", "tails", "target")


def row_costs(item: ScoreItem, want: Want, info: TeacherInfo, *, bfloat16: bool = False) -> npt.NDArray[np.int64]:
    """Bytes of the answer to each row [n] of a checked item, at most (draws may repeat)."""
    header = header_for(info, want)
    fixed = sum(header.row_bytes.values()) if header else 0
    fixed += 12 * want.samples + 4 * info.vocab_size * want.full
    fixed += len(want.layers) * (info.hidden_size or 0) * (2 if bfloat16 else 4)
    costs = np.full(item.n, fixed, np.int64)
    if want.token_ids and item.token_ids is not None:
        costs += 4 * (item.token_ids.shape[1] if item.offsets is None else np.diff(item.offsets))
    return costs


def fragments(
    item: ScoreItem, signal: Signal, want: Want, info: TeacherInfo, *, bfloat16: bool = False
) -> Iterator[pb.Fragment]:
    """The answer to `item` in messages of about 1 MiB, whole rows each. Raises SIGNAL_INVALID for a wrong signal."""
    if (signal.first_row, signal.n) != (item.first_row, item.n):
        raise _wrong(f"rows {signal.first_row} and {signal.n} on came, {item.first_row} and {item.n} on were asked")
    header = header_for(info, want)
    sizes = header.row_bytes if header else {}
    packed = encode(signal, header).fields if header else {}
    ends = np.cumsum(row_costs(item, want, info, bfloat16=bfloat16))
    start, sent = 0, 0
    while start < item.n:
        stop = max(start + 1, int(np.searchsorted(ends, sent + FRAGMENT, side="right")))
        rows = slice(start, stop)
        fields = {name: bytes(memoryview(packed[name])[start * size : stop * size]) for name, size in sizes.items()}
        message = pb.Fragment(
            item_id=item.item_id,
            last=stop == item.n,
            cost=int(ends[stop - 1]) - sent,
            signal=signal_pb2.PackedSignal(first_row=item.first_row + start, n=stop - start, **fields),
            hidden=[_hidden(layer, signal, rows, info, bfloat16) for layer in want.layers],
        )
        if want.token_ids:
            message.token_logprobs = _asked(signal, rows)
        if want.samples:
            message.samples.CopyFrom(_samples(signal, rows))
        if want.full and signal.full is not None:
            message.full = signal.full[rows].astype("<f4", copy=False).tobytes()
        yield message
        start, sent = stop, int(ends[stop - 1])


class Assembler:
    """Puts the fragments of one item together."""

    def __init__(self, item: ScoreItem, want: Want, header: SignalHeader | None) -> None:
        self._item, self._want, self._header = item, want, header
        self._parts: list[pb.Fragment] = []
        self._rows = 0

    def add(self, fragment: pb.Fragment) -> Signal | None:
        """Take the next fragment; the signal where it was the last. Raises SIGNAL_INVALID for what does not fit."""
        part = fragment.signal
        expected = self._item.first_row + self._rows
        if part.first_row != expected or part.n < 1 or self._rows + part.n > self._item.n:
            raise _wrong(f"rows {part.first_row} and {part.n} on came, rows from {expected} on were due")
        self._rows += part.n
        self._parts.append(fragment)
        if fragment.last != (self._rows == self._item.n):
            raise _wrong(
                f"{self._rows} of {self._item.n} rows came, and {'no' if fragment.last else 'more'} are to come"
            )
        return self._signal() if fragment.last else None

    def _signal(self) -> Signal:
        item, want, parts = self._item, self._want, self._parts
        n = item.n
        top_k = target = asked = samples = full = None
        if self._header:
            packed = Packed(
                item.first_row, n, {name: _join([getattr(p.signal, name) for p in parts]) for name in _PACKED}
            )
            decoded = decode(packed, self._header)
            top_k, target = decoded.top_k, decoded.target
        if want.token_ids and item.token_ids is not None:
            values = numbers(_join([p.token_logprobs for p in parts]), "<f4", "token_logprobs")
            if values.size != item.token_ids.size:
                raise _wrong(f"{values.size} values came for {item.token_ids.size} ids")
            asked = TokenLogprobs(item.token_ids, values.reshape(item.token_ids.shape), item.offsets)
        if want.samples:
            columns = {
                name: numbers(_join([getattr(p.samples, name) for p in parts]), dtype, f"samples.{name}")
                for name, dtype in (("ids", "<i4"), ("counts", "<i4"), ("logprobs", "<f4"))
            }
            if len({values.size for values in columns.values()}) > 1 or columns["ids"].size % n:
                raise _wrong("the draws' ids, counts and log-probabilities are not of one shape")
            samples = Samples(**{name: values.reshape(n, -1) for name, values in columns.items()})
        hidden = {}
        for place, layer in enumerate(want.layers):
            pieces = [p.hidden[place] for p in parts if place < len(p.hidden) and p.hidden[place].layer == layer]
            if len(pieces) != len(parts):
                raise _wrong(f"layer {layer} is missing")
            hidden[layer] = _matrix(
                _floats(_join([piece.values for piece in pieces]), pieces[0].dtype), n, f"layer {layer}"
            )
        if want.full:
            full = _matrix(numbers(_join([p.full for p in parts]), "<f4", "full"), n, "full")
        return Signal(item.first_row, n, top_k, target, asked, samples, hidden, full)


def bfloat16_bytes(values: npt.NDArray[np.float32]) -> bytes:
    """The upper halves of float32 numbers, rounded to nearest, halves to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), np.uint32(0x7FC00000), rounded).__rshift__(np.uint32(16)).astype("<u2").tobytes()


def bfloat16_numbers(raw: Any) -> npt.NDArray[np.float32]:
    """The inverse of :func:`bfloat16_bytes`, float32."""
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _floats(raw: Any, dtype: int) -> npt.NDArray[np.float32]:
    if dtype == signal_pb2.DTYPE_BFLOAT16:
        return bfloat16_numbers(raw)
    return numbers(raw, "<f4", "hidden")


def _matrix(values: npt.NDArray[np.float32], n: int, what: str) -> npt.NDArray[np.float32]:
    if values.size % n:
        raise _wrong(f"{what} has {values.size} numbers, no whole number in each of {n} rows")
    return values.reshape(n, -1)


def _hidden(layer: int, signal: Signal, rows: slice, info: TeacherInfo, bfloat16: bool) -> pb.HiddenStates:
    states = signal.hidden[layer][rows]
    dtype = signal_pb2.DTYPE_BFLOAT16 if bfloat16 else signal_pb2.DTYPE_FLOAT32
    raw = bfloat16_bytes(states) if bfloat16 else states.astype("<f4", copy=False).tobytes()
    return pb.HiddenStates(layer=layer, dtype=dtype, final_norm=layer in (-1, info.num_layers), values=raw)


def _asked(signal: Signal, rows: slice) -> bytes:
    asked = signal.token_ids
    if asked is None:
        raise _wrong("the answers to token_ids are missing")
    values = (
        asked.logprobs[rows]
        if asked.offsets is None
        else asked.logprobs[asked.offsets[rows.start] : asked.offsets[rows.stop]]
    )
    return values.astype("<f4", copy=False).tobytes()


def _samples(signal: Signal, rows: slice) -> pb.Samples:
    found = signal.samples
    if found is None:
        raise _wrong("the draws are missing")
    return pb.Samples(
        ids=found.ids[rows].astype("<i4", copy=False).tobytes(),
        counts=found.counts[rows].astype("<i4", copy=False).tobytes(),
        logprobs=found.logprobs[rows].astype("<f4", copy=False).tobytes(),
    )


def _join(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _wrong(message: str) -> LimbeckError:
    return LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message)])
