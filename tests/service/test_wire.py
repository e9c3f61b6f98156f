"""Encoding by hand against protobuf's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.service.wire import stored_signal, stored_signals
from limbeck.signals.codec import Packed
from limbeck.signals.shard import Entry
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

NAMES = ("ids_low", "ids_high", "logprobs", "tails", "target")
LARGE = 2**31 - 1
fields = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([b"", b"a", b"b" * 127, b"c" * 128, b"d" * 20_000]))
tokens = st.none() | st.builds(pb.Tokens, ids=st.binary(max_size=200), trained=st.binary(max_size=50))
entries = st.builds(
    Entry,
    index=st.integers(0, 2**40),
    length=st.just(1),
    ids_digest=st.binary(min_size=32, max_size=32),
    packed=st.builds(Packed, first_row=st.integers(0, LARGE), n=st.integers(0, LARGE), fields=fields),
)


@given(st.lists(st.tuples(entries, tokens), max_size=4))
def test_the_message_is_the_one_that_protobuf_would_write(signals):
    made = pb.StreamSignalsResponse.FromString(stored_signals([stored_signal(*one) for one in signals]))
    expected = pb.StoredSignals()
    for entry, text in signals:
        packed = signal_pb2.PackedSignal(first_row=entry.packed.first_row, n=entry.packed.n, **entry.packed.fields)
        expected.signals.add(sequence=entry.index + 1, signal=packed, ids_sha256=entry.ids_digest, tokens=text)
    assert made == pb.StreamSignalsResponse(signals=expected)


def test_buffers_of_any_type_of_number_are_taken():
    numbers = np.arange(5, dtype="<f4")
    entry = Entry(0, 5, b"x" * 32, Packed(0, 5, {"target": numbers}))
    made = pb.StreamSignalsResponse.FromString(stored_signals([stored_signal(entry, None)]))
    assert made.signals.signals[0].signal.target == numbers.tobytes()
