"""Bytes and back: round trips, sizes, and bytes that cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError, Reason
from limbeck.signals import Signal, SignalHeader, TopK
from limbeck.signals.codec import Packed, decode, encode, pack_bits, unpack_bits


def header(**changes: Any) -> SignalHeader:
    values: dict[str, Any] = {"vocab_size": 262_144, "k": 64, "temperatures": (1.0,), "target": False}
    values |= {"tokenizer_digest": "aa", "template_digest": None, "weights_digest": "bb", "teacher": "t"}
    return SignalHeader(**values | changes)


def signal(head: SignalHeader, n: int, seed: int, first_row: int = 0) -> Signal:
    """Random codes and ids: what the codec carries need not be a likely distribution."""
    draw = np.random.default_rng(seed)
    top = None
    if head.k:
        if head.vocab_size < 5000:
            ids = np.argsort(draw.random((n, head.vocab_size)), axis=1)[:, : head.k].astype(np.int32)
        else:
            ids = draw.integers(0, head.vocab_size, (n, head.k)).astype(np.int32)
        u = np.sort(draw.integers(0, 65536, (n, head.k)).astype(np.uint16), axis=1)
        tails = (-draw.exponential(size=(n, len(head.temperatures)))).astype(np.float32)
        tails[draw.random(tails.shape) < 0.2] = -np.inf
        top = TopK(ids, u, tails, head.temperatures)
    target = (-draw.exponential(size=n)).astype(np.float32) if head.target else None
    return Signal(first_row, n, top_k=top, target=target)


@given(
    bits=st.integers(1, 31),
    less=st.integers(0, 5),
    k=st.integers(0, 70),
    n=st.integers(0, 5),
    temperatures=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 8.0]), min_size=1, unique=True).map(sorted).map(tuple),
    target=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_what_is_packed_comes_back_bit_for_bit(
    bits: int, less: int, k: int, n: int, temperatures: tuple[float, ...], target: bool, seed: int
) -> None:
    vocab_size = max(1, 2**bits - less)
    k = min(k, vocab_size)
    head = header(vocab_size=vocab_size, k=k, temperatures=temperatures, target=target or k == 0)
    given_ = signal(head, n, seed, first_row=seed % 100)
    packed = encode(given_, head)
    assert {name: len(raw) for name, raw in packed.fields.items()} == {
        name: n * size for name, size in head.row_bytes.items()
    }
    back = decode(packed, head)
    assert (back.first_row, back.n) == (given_.first_row, n)
    assert (back.top_k is None) == (k == 0)
    if back.top_k is not None and given_.top_k is not None:
        for field in ("ids", "u", "tails"):
            ours, theirs = getattr(back.top_k, field), getattr(given_.top_k, field)
            assert ours.tolist() == theirs.tolist()
            assert ours.dtype == theirs.dtype
    assert (back.target is None) == (given_.target is None)
    if back.target is not None and given_.target is not None:
        assert back.target.tolist() == given_.target.tolist()
    again = encode(back, head)
    assert all(bytes(again.fields[name]) == bytes(packed.fields[name]) for name in head.row_bytes)


@given(st.integers(1, 15), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_bits_are_packed_lsb_first_and_padded_to_a_byte(bits: int, k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, k)).astype(np.int32)
    rows = pack_bits(values, bits)
    for row, numbers in zip(rows, values.tolist(), strict=True):
        whole = sum(number << (i * bits) for i, number in enumerate(numbers))
        assert row.tobytes() == whole.to_bytes((k * bits + 7) // 8, "little")
    assert unpack_bits(rows, bits, k).tolist() == values.tolist()


@pytest.mark.parametrize(("vocab_size", "high"), [(65_536, 0), (65_537, 1), (131_073, 2), (262_144, 2), (262_145, 3)])
def test_high_bits_follow_from_the_vocabulary(vocab_size: int, high: int) -> None:
    assert header(vocab_size=vocab_size).high_bits == high


def test_a_token_costs_276_bytes_at_k_64_on_gemmas_vocabulary() -> None:
    head = header()
    packed = encode(signal(head, 10, 0), head)
    assert sum(map(len, packed.fields.values())) == 10 * 276
    more = header(temperatures=(1.0, 2.0), target=True)
    assert sum(more.row_bytes.values()) == 276 + 4 + 4


def refused(packed: Packed, head: SignalHeader) -> str:
    with pytest.raises(LimbeckError) as caught:
        decode(packed, head)
    assert caught.value.reason is Reason.SIGNAL_INVALID
    return str(caught.value)


def test_bytes_that_cannot_be_are_refused() -> None:
    head = header(vocab_size=100_000, k=4, target=True)
    packed = encode(signal(head, 3, 0), head)
    cut = {**packed.fields, "logprobs": packed.fields["logprobs"][:-1]}
    assert "logprobs holds 23 bytes, 3 rows of 8 are needed" in refused(Packed(0, 3, cut), head)
    assert "target holds 0 bytes" in refused(Packed(0, 3, {**packed.fields, "target": b""}), head)
    ids = {**packed.fields, "ids_low": b"\xff" * 24, "ids_high": b"\x0f" * 3}
    assert "id 131071 is outside of the vocabulary of 100000" in refused(Packed(0, 3, ids), head)
    tails = {**packed.fields, "tails": np.array([-1, np.nan, -1], "<f4").tobytes()}
    assert "a tail is NaN or above 0" in refused(Packed(0, 3, tails), head)


def test_a_signal_that_does_not_fit_its_header_is_refused() -> None:
    head = header(vocab_size=1000, k=4, target=True)
    good = signal(head, 3, 0)
    assert good.top_k is not None
    wrong = {
        "the signal has no ids": dataclasses.replace(good, top_k=None),
        "target has shape None": dataclasses.replace(good, target=None),
        "target's log-probability is NaN": dataclasses.replace(good, target=np.array([-1, np.nan, -1], np.float32)),
        "ids have shape (2, 4)": dataclasses.replace(good, top_k=good.top_k.take(slice(2))),
        "tails are at temperatures (2.0,)": dataclasses.replace(
            good, top_k=dataclasses.replace(good.top_k, temperatures=(2.0,))
        ),
        "the vocabulary has 1000": dataclasses.replace(
            good, top_k=dataclasses.replace(good.top_k, ids=good.top_k.ids + 1000)
        ),
    }
    for text, bad in wrong.items():
        with pytest.raises(LimbeckError) as caught:
            encode(bad, head)
        assert caught.value.reason is Reason.SIGNAL_INVALID
        assert text in str(caught.value)


def test_a_header_survives_json_and_an_unknown_codec_is_refused() -> None:
    head = header(temperatures=(0.5, 1.0), target=True, tail_exact=False)
    value = head.to_json()
    assert SignalHeader.from_json(value) == head
    assert value["dtypes"] == {"ids_low": "<u2", "ids_high": "u1", "logprobs": "<u2", "tails": "<f4", "target": "<f4"}
    for change in ({"version": 2}, {"codec": "other"}, {"k": -1}, {"temperatures": [2.0, 1.0]}, {"vocab_size": None}):
        with pytest.raises(LimbeckError) as caught:
            SignalHeader.from_json(value | change)
        assert caught.value.reason is Reason.SIGNAL_INVALID


def test_a_header_of_impossible_values_names_all_of_them() -> None:
    with pytest.raises(LimbeckError) as caught:
        header(vocab_size=10, k=11, temperatures=(1.0, 1.0))
    text = str(caught.value)
    assert "k is 11; 0 to vocab_size (10) is allowed" in text
    assert "temperatures are [1.0, 1.0]" in text
    with pytest.raises(LimbeckError, match="nothing would be stored"):
        header(k=0)
