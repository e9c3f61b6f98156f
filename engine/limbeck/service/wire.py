"""Stored signals and events as encoded messages, copied once: protobuf's own way copies every byte four times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.signals.shard import Entry
from limbeck.v1 import signal_pb2, training_service_pb2
from limbeck.v1 import teacher_service_pb2 as pb

_BYTES = 2  # wire type of bytes and messages
Pieces = list[Any]  # of bytes and views of them, one after the other

_PACKED = {name: field.number for name, field in signal_pb2.PackedSignal.DESCRIPTOR.fields_by_name.items()}
_SIGNAL = pb.StoredSignal.DESCRIPTOR.fields_by_name["signal"].number
_SIGNALS = pb.StoredSignals.DESCRIPTOR.fields_by_name["signals"].number
_ANSWER = pb.StreamSignalsResponse.DESCRIPTOR.fields_by_name["signals"].number
_EVENT = training_service_pb2.Events.DESCRIPTOR.fields_by_name["events"].number
_EVENTS = training_service_pb2.WatchRunResponse.DESCRIPTOR.fields_by_name["events"].number


def watched(events: Sequence[bytes]) -> bytes:
    """A WatchRunResponse that holds encoded events."""
    return b"".join(field(_EVENTS, [piece for event in events for piece in field(_EVENT, [event])]))


def stored_signal(entry: Entry, tokens: pb.Tokens | None) -> Pieces:
    """A StoredSignal."""
    packed = [signal_pb2.PackedSignal(first_row=entry.packed.first_row, n=entry.packed.n).SerializeToString()]
    for name, raw in entry.packed.fields.items():
        packed += field(_PACKED[name], [memoryview(raw).cast("B")])
    others = pb.StoredSignal(sequence=entry.index + 1, ids_sha256=entry.ids_digest, tokens=tokens)
    return [others.SerializeToString(), *field(_SIGNAL, packed)]


def stored_signals(signals: Sequence[Pieces]) -> bytes:
    """A StreamSignalsResponse that holds them."""
    return b"".join(field(_ANSWER, [piece for signal in signals for piece in field(_SIGNALS, signal)]))


def size_of(pieces: Pieces) -> int:
    """Bytes in all."""
    return sum(map(len, pieces))


def field(number: int, pieces: Pieces) -> Pieces:
    """A field of bytes or of a message, by its number."""
    return [_varint(number << 3 | _BYTES) + _varint(size_of(pieces)), *pieces]


def _varint(value: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
