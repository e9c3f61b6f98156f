"""Signals as bytes: one layout on the wire and on disk. docs/signals.md describes it for other languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.header import SignalHeader
from limbeck.signals.signal import Signal
from limbeck.signals.topk import LIMIT, TopK

_WHOLE = (1, 2, 4, 8)  # numbers that never cross a byte's end: shifted as bytes, 20 times faster than bit by bit


@dataclass(frozen=True, slots=True)
class Packed:
    """One signal as bytes: `fields` holds what the header's `row_bytes` names, n rows each. Any buffers will do."""

    first_row: int
    n: int
    fields: Mapping[str, Any]


def encode(signal: Signal, header: SignalHeader) -> Packed:
    """Pack what the header names of a signal. Raises SIGNAL_INVALID where the signal does not fit the header."""
    fields: dict[str, bytes] = {}
    if header.k:
        top = _fitting(signal, header)
        fields["ids_low"] = top.ids.astype("<u2").tobytes()  # the low 16 bits
        fields["ids_high"] = pack_bits(top.ids >> 16, header.high_bits).tobytes()
        fields["logprobs"] = top.u.astype("<u2", copy=False).tobytes()
        fields["tails"] = top.tails.astype("<f4", copy=False).tobytes()
    if header.target:
        target = signal.target
        if target is None or target.shape != (signal.n,):
            raise _invalid(f"target has shape {None if target is None else target.shape}, ({signal.n},) is needed")
        if np.isnan(target).any() or (target > LIMIT).any():
            raise _invalid("a target's log-probability is NaN or above 0")
        fields["target"] = np.minimum(target, 0.0).astype("<f4").tobytes()
    return Packed(signal.first_row, signal.n, fields)


def decode(packed: Packed, header: SignalHeader) -> Signal:
    """Read packed bytes. Arrays may be views of the buffers. Raises SIGNAL_INVALID for sizes or ids that cannot be."""
    for name, size in header.row_bytes.items():
        held = memoryview(packed.fields.get(name, b"")).nbytes
        if held != packed.n * size:
            raise _invalid(f"{name} holds {held} bytes, {packed.n} rows of {size} are needed")
    n, k = packed.n, header.k
    top = None
    if k:
        ids = np.frombuffer(packed.fields["ids_low"], "<u2").reshape(n, k).astype(np.int32)
        if header.high_bits:
            rows = np.frombuffer(packed.fields["ids_high"], np.uint8).reshape(n, header.row_bytes["ids_high"])
            ids |= unpack_bits(rows, header.high_bits, k).astype(np.int32) << 16
        u = np.frombuffer(packed.fields["logprobs"], "<u2").reshape(n, k)
        tails = np.frombuffer(packed.fields["tails"], "<f4").reshape(n, len(header.temperatures))
        top = TopK(ids, u, tails, header.temperatures)
        if n and int(ids.max()) >= header.vocab_size:
            raise _invalid(f"id {ids.max()} is outside of the vocabulary of {header.vocab_size}")
        if not (tails <= 0.0).all():
            raise _invalid("a tail is NaN or above 0")
    target = np.frombuffer(packed.fields["target"], "<f4") if header.target else None
    return Signal(packed.first_row, n, top_k=top, target=target, partial=header.partial)


def pack_bits(values: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Rows of `bits`-bit numbers [n, k], LSB first, each row padded to a byte: [n, ⌈k·bits/8⌉]."""
    n, k = values.shape
    if bits not in _WHOLE:
        spread = (values[:, :, None] >> np.arange(bits)) & 1
        return np.packbits(spread.astype(np.uint8).reshape(n, k * bits), axis=1, bitorder="little")
    rows = np.zeros((n, (k * bits + 7) // 8), np.uint8)
    for place in range(8 // bits):
        part = values[:, place :: 8 // bits].astype(np.uint8)
        rows[:, : part.shape[1]] |= part << (place * bits)
    return rows


def unpack_bits(rows: npt.NDArray[np.uint8], bits: int, k: int) -> npt.NDArray[np.integer]:
    """The inverse of :func:`pack_bits`: [n, k], of a type that holds the numbers."""
    n = len(rows)
    if bits not in _WHOLE:
        spread = np.unpackbits(rows, axis=1, count=k * bits, bitorder="little").reshape(n, k, bits)
        return spread.astype(np.int32) @ (1 << np.arange(bits, dtype=np.int32))
    values = np.empty((n, rows.shape[1], 8 // bits), np.uint8)
    for place in range(8 // bits):
        values[:, :, place] = (rows >> (place * bits)) & (2**bits - 1)
    return values.reshape(n, rows.shape[1] * (8 // bits))[:, :k]


def _fitting(signal: Signal, header: SignalHeader) -> TopK:
    top = signal.top_k
    if top is None:
        raise _invalid(f"the signal has no ids, {header.k} a row are needed")
    if top.ids.shape != (signal.n, header.k) or top.u.shape != top.ids.shape:
        raise _invalid(f"ids have shape {top.ids.shape}, ({signal.n}, {header.k}) is needed")
    if top.temperatures != header.temperatures or top.tails.shape != (signal.n, len(header.temperatures)):
        raise _invalid(f"tails are at temperatures {top.temperatures}, {header.temperatures} are needed")
    if signal.n and not 0 <= int(top.ids.min()) <= int(top.ids.max()) < header.vocab_size:
        raise _invalid(f"ids run from {top.ids.min()} to {top.ids.max()}, the vocabulary has {header.vocab_size}")
    return top


def _invalid(message: str) -> LimbeckError:
    return LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message)])
