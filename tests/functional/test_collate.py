"""Rows and signals are matched by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Reason
from limbeck.functional import collate
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK


def row(index: int, length: int, trained: list[int], **more: Any) -> TokenSequence:
    mask = np.zeros(length, dtype=bool)
    mask[trained] = True
    ids = (10 * (index + 1) + np.arange(length)).astype(np.int32)
    offsets = np.stack([np.arange(length), np.arange(length) + 1], 1).astype(np.int32)
    return TokenSequence(index, ids, mask, offsets, "rows.jsonl", index + 1, **more)


def top(rows: range, k: int = 3) -> TopK:
    """Ids and log-probabilities that say which row they are of: p(i) = 2^-(i + 1), ids 100·row + i."""
    ids = np.array([[100 * r + i for i in range(k)] for r in rows], dtype=np.int64)
    logprobs = np.tile(-np.log(2.0) * (np.arange(k) + 1), (len(rows), 1))
    tails = np.full((len(rows), 1), -k * np.log(2.0), dtype=np.float32)
    return TopK.from_logprobs(ids, logprobs, tails, (1.0,))


def test_rows_are_right_padded_and_kept_tokens_point_into_them() -> None:
    rows = [row(0, 6, [2, 3, 5]), row(1, 3, [2])]
    inputs, batch = collate(rows, [None, None], (1.0,), pad_id=7)
    assert inputs["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15], [20, 21, 22, 7, 7, 7]]
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.labels.tolist() == [12, 13, 15, 22]
    assert batch.batch_n is not None
    assert batch.time_n is not None
    assert list(zip(batch.batch_n.tolist(), batch.time_n.tolist(), strict=True)) == [(0, 1), (0, 2), (0, 4), (1, 1)]
    assert batch.offsets_n2 is not None
    assert batch.offsets_n2.tolist() == [[2, 3], [3, 4], [5, 6], [2, 3]]
    assert batch.counts == {"tokens": 4, "rows": 2, "pairs": 0}
    assert tuple(batch.places) == (("rows.jsonl", 1), ("rows.jsonl", 2))


@pytest.mark.parametrize("first_row", [0, 1])
def test_a_signal_is_found_by_its_first_row(first_row: int) -> None:
    """Whether it covers the prompt or not, and whatever the batch's shape."""
    sequence = row(0, 6, [2, 3, 5])
    rows = range(first_row, 5)
    signal = Signal(first_row, len(rows), top(rows), target=-np.arange(first_row, 5).astype(np.float32))
    for rows_before in ([], [row(1, 9, [8])]):
        signals = [Signal(7, 1, top(range(7, 8)), target=np.zeros(1, np.float32))] if rows_before else []
        _, batch = collate([*rows_before, sequence], [*signals, signal], (1.0,), pad_id=0)
        at = len(rows_before)
        assert batch.answers["top_k"].ids[at:, 0].tolist() == [100, 200, 400]
        assert batch.answers["target"].at[1.0][0][at:, 0].tolist() == [-1, -2, -4]


def test_a_smaller_k_is_cut_and_the_rest_is_in_the_tail() -> None:
    sequence = row(0, 3, [1, 2])
    _, batch = collate([sequence], [Signal(0, 2, top(range(2), 5))], (1.0,), pad_id=0, top_k=2)
    on_support, tail = batch.answers["top_k"].at[1.0]
    torch.testing.assert_close(on_support.exp(), torch.tensor([[0.5, 0.25]] * 2), rtol=0, atol=2e-4)
    torch.testing.assert_close(tail.exp(), torch.tensor([0.25] * 2), rtol=0, atol=2e-4)
    torch.testing.assert_close(on_support.exp().sum(1) + tail.exp(), torch.ones(2))


def test_saturated_entries_are_counted_and_left_to_the_tail() -> None:
    ids, logprobs = np.array([[5, 6, 7]]), np.array([[0.0, -79.0, -np.inf]])
    signal = Signal(0, 1, TopK.from_logprobs(ids, logprobs, np.array([[-np.inf]], dtype=np.float32), (1.0,)))
    _, batch = collate([row(0, 2, [1])], [signal], (1.0,), pad_id=0)
    assert batch.saturated == 1
    assert batch.answers["top_k"].ids.tolist() == [[5, 6, -1]]
    assert batch.answers["top_k"].at[1.0][0][0, 2] == -torch.inf


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_what_is_left_beside_saturated_entries_sums_to_one(temperature: float) -> None:
    """At a high temperature a code of −80 nats still stands for mass: leaving it out made bucket KL negative."""
    ids, logprobs = np.array([[5, 6, 7, 8]]), np.array([[0.0, -3.0, -85.0, -np.inf]])
    logprobs[0, :2] -= np.log1p(np.exp(-3.0))
    tails = np.full((1, 2), -90.0, dtype=np.float32)
    top_k = TopK.from_logprobs(ids, logprobs, tails, tuple(sorted({1.0, temperature, 50.0}))[:2])
    _, batch = collate([row(0, 2, [1])], [Signal(0, 1, top_k)], (temperature,), pad_id=0)
    on_support, tail = batch.answers["top_k"].at[temperature]
    torch.testing.assert_close(on_support.exp().sum(1) + tail.exp(), torch.ones(1), rtol=0, atol=1e-6)


def test_token_ids_dense_or_csr_and_samples_keep_their_order() -> None:
    sequence = row(0, 3, [1, 2])
    logs = np.log(np.array([[0.5, 0.25], [0.25, 0.5]], dtype=np.float32))
    dense = TokenLogprobs(np.array([[9, 3], [4, 8]], dtype=np.int32), logs)
    csr = TokenLogprobs(
        np.array([9, 3, 4], dtype=np.int32), np.log(np.array([0.5, 0.25, 1.0], dtype=np.float32)), np.array([0, 2, 3])
    )
    draws = Samples(
        np.array([[4, 5], [6, 0]], dtype=np.int32), np.array([[1, 2], [3, 0]], dtype=np.int32), logs.astype(np.float32)
    )
    _, batch = collate([sequence], [Signal(0, 2, token_ids=dense, samples=draws)], (1.0,), pad_id=0)
    asked = batch.answers["token_ids"]
    assert asked.ids.tolist() == [[9, 3], [4, 8]]
    torch.testing.assert_close(asked.at[1.0][1].exp(), torch.tensor([0.25, 0.25]))
    drawn = batch.answers["samples"]
    assert drawn.ids.tolist() == [[4, 5], [6, -1]]
    assert drawn.counts is not None
    assert drawn.counts.tolist() == [[1, 2], [3, 0]]
    _, batch = collate([sequence], [Signal(0, 2, token_ids=csr)], (1.0,), pad_id=0)
    asked = batch.answers["token_ids"]
    assert asked.ids.tolist() == [[9, 3], [4, -1]]
    assert asked.at[1.0][0][1].tolist() == [0.0, -torch.inf]
    assert asked.at[1.0][1][1] == -torch.inf


def test_hidden_states_and_full_vocabularies_come_for_kept_tokens() -> None:
    sequence = row(0, 6, [2, 5])
    states = np.arange(10, dtype=np.float32).reshape(5, 2)
    _, batch = collate([sequence], [Signal(0, 5, hidden={-1: states}, full=states)], (1.0,), pad_id=0)
    assert batch.hidden[-1].tolist() == [[2, 3], [8, 9]]
    assert batch.full is not None
    assert batch.full.tolist() == [[2, 3], [8, 9]]


def test_pairs_are_counted_within_the_batch() -> None:
    rows = [
        row(i, 3, [2], pair=pair, chosen=chosen)
        for i, (pair, chosen) in enumerate([(7, True), (-1, True), (7, False), (2, False), (2, True)])
    ]
    _, batch = collate(rows, [None] * 5, (1.0,), pad_id=0)
    assert batch.pair_r is not None
    assert batch.chosen_r is not None
    assert batch.pair_r.tolist() == [0, -1, 0, 1, 1]
    assert batch.chosen_r.tolist() == [True, True, False, False, True]
    assert batch.counts["pairs"] == 2


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ([Signal(2, 3, top(range(2, 5))), None], "covers rows 2 to 4; kept are 1 to 4"),
        ([Signal(1, 3, top(range(1, 4))), None], "covers rows 1 to 3; kept are 1 to 4"),
        ([Signal(1, 4, top(range(1, 4))), None], "top_k has 3 rows where 4"),
        ([Signal(1, 4, target=np.zeros(5, np.float32)), None], "target has 5 rows where 4"),
        ([Signal(1, 4, top(range(1, 5))), None], "has no top_k, others"),
        ([Signal(1, 4, hidden={1: np.zeros((4, 2), np.float32)}), Signal(1, 1)], "no hidden states of layer 1"),
        ([None], "1 signals came for 2"),
    ],
)
def test_signals_that_do_not_fit_are_refused(signals: list[Signal | None], said: str) -> None:
    with pytest.raises(LimbeckError, match=said) as caught:
        collate([row(0, 6, [2, 3, 5]), row(1, 3, [2])], signals, (1.0,), pad_id=0)
    assert caught.value.reason == Reason.SIGNAL_INVALID
