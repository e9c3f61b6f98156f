"""Requests as questions to the engine and its answers as signals, with an engine made of a table of numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck_vllm.frames import Answer, Question
from limbeck_vllm.questions import check_sampling, completion_of, prompt_question, score_question, seed_of, signal_of
from limbeck_vllm.rows import rows_of

V = 12
IDS = np.array([2, 5, 7, 3, 9, 1], np.int32)


def full_row(row: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log-probabilities of row `row`, all different, so that a shift by one is seen."""
    logits = np.random.default_rng(row).normal(size=V)
    result: np.ndarray[Any, np.dtype[np.float64]] = logits - np.log(np.exp(logits).sum())
    return result


def flat(entries: list[tuple[int, int] | None], k: int) -> SimpleNamespace:
    """FlatLogprobs of (row, actual token), None for an empty entry; as vLLM makes them: the target first, repeated."""
    found = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
    for entry in entries:
        found.start_indices.append(len(found.token_ids))
        if entry is not None:
            row, target = entry
            best = np.argsort(-full_row(row))[: V if k < 0 else k]
            ids = [target, *best.tolist()]
            found.token_ids += ids
            found.logprobs += full_row(row)[ids].tolist()
        found.end_indices.append(len(found.token_ids))
    return found


def engine(question: Question) -> Answer:
    """What the engine answers to a question."""
    ids, k = question.ids.tolist(), question.prompt_logprobs
    prompt = said = table = None
    if k is not None:
        entries = [None, *((j - 1, ids[j]) for j in range(1, len(ids)))]
        prompt = rows_of(flat(entries, k), k, question.first + 1, question.first + 1 + question.n)
    if question.logprobs is not None:
        said = rows_of(flat([(len(ids) - 1, 4)], question.logprobs), question.logprobs, 0, 1)
    if question.token_ids is not None:
        assert len(question.token_ids) == len(ids) - 1 - question.first  # as vLLM demands
        table = np.array(
            [
                [full_row(question.first + r)[i] if i >= 0 else -np.inf for i in row]
                for r, row in enumerate(question.token_ids)
            ],
            np.float32,
        )
    return Answer(question.number, np.array([4], np.int32), False, prompt, said, table)


@pytest.mark.parametrize(
    ("first", "n", "target"), [(0, 5, True), (2, 2, True), (0, 6, False), (5, 1, False), (3, 1, False)]
)
def test_every_row_is_that_of_its_position(first: int, n: int, target: bool) -> None:
    item, want = ScoreItem(1, IDS, first, n), Want(top_k=3, target=target)
    signal = signal_of(item, want, engine(score_question(item, want, 1)))
    assert (signal.first_row, signal.n) == (first, n)
    assert signal.top_k is not None
    for place, row in enumerate(range(first, first + n)):
        expected = np.argsort(-full_row(row))[:3]
        np.testing.assert_array_equal(np.sort(signal.top_k.ids[place]), np.sort(expected))
        outside = 1 - np.exp(full_row(row)[expected]).sum()
        assert np.exp(signal.top_k.tails[place, 0]) == pytest.approx(outside, abs=1e-5)
        if target:
            assert signal.target is not None
            assert signal.target[place] == pytest.approx(full_row(row)[IDS[row + 1]], abs=1e-6)


def test_a_target_among_the_likeliest_is_not_counted_twice() -> None:
    best = int(np.argmax(full_row(0)))
    item = ScoreItem(1, np.array([2, best, 3], np.int32), 0, 1)
    signal = signal_of(item, Want(top_k=V), engine(score_question(item, Want(top_k=V), 1)))
    assert signal.top_k is not None
    assert sorted(signal.top_k.ids[0].tolist()) == list(range(V))


def test_tokens_behind_the_rows_are_not_sent() -> None:
    assert score_question(ScoreItem(1, IDS, 1, 2), Want(top_k=3), 1).ids.tolist() == IDS[:4].tolist()


def test_the_target_alone_asks_for_no_support() -> None:
    item, want = ScoreItem(1, IDS, 0, 5), Want(target=True)
    question = score_question(item, want, 1)
    assert (question.prompt_logprobs, question.logprobs) == (0, None)
    signal = signal_of(item, want, engine(question))
    assert signal.top_k is None
    assert signal.target is not None
    np.testing.assert_allclose(signal.target, [full_row(r)[IDS[r + 1]] for r in range(5)], atol=1e-6)


@pytest.mark.parametrize("with_top_k", [False, True])
def test_given_ids_are_answered_in_the_asked_order_dense_and_csr_also_of_the_last_row(with_top_k: bool) -> None:
    want = Want(top_k=2 if with_top_k else 0, token_ids=True)
    dense = np.random.default_rng(1).integers(0, V, (4, 3)).astype(np.int32)
    csr, offsets = np.array([3, 3, 0, 11, 7], np.int32), np.array([0, 2, 2, 4, 5], np.int64)
    for item in (ScoreItem(1, IDS, 2, 4, dense), ScoreItem(1, IDS, 2, 4, csr, offsets)):
        signal = signal_of(item, want, engine(score_question(item, want, 1)))
        counts = np.full(4, 3) if item.offsets is None else np.diff(item.offsets)
        assert signal.token_ids is not None
        assert item.token_ids is not None
        asked = item.token_ids.ravel()
        expected = [full_row(2 + row)[asked[j]] for j, row in enumerate(np.repeat(np.arange(4), counts))]
        np.testing.assert_allclose(signal.token_ids.logprobs.ravel(), expected, atol=1e-6)
        assert signal.token_ids.logprobs.shape == item.token_ids.shape
        assert (signal.top_k is not None) == with_top_k


def test_numbers_that_are_none_name_the_item() -> None:
    item, want = ScoreItem(7, IDS, 0, 5), Want(top_k=3)
    answer = engine(score_question(item, want, 1))
    assert answer.prompt is not None
    answer.prompt.logprobs[1, 1] = np.nan
    with pytest.raises(LimbeckError) as caught:
        signal_of(item, want, answer)
    assert caught.value.reason is Reason.SCORING_FAILED
    assert caught.value.problems[0].field == "item 7"


def test_an_impossible_id_among_the_likeliest_is_no_fault() -> None:
    item, want = ScoreItem(7, IDS, 0, 5), Want(top_k=3)
    answer = engine(score_question(item, want, 1))
    assert answer.prompt is not None
    answer.prompt.logprobs[:, 2] = -np.inf
    signal = signal_of(item, want, answer)
    assert signal.top_k is not None
    assert signal.top_k.saturated == 5


def test_entries_that_hold_other_counts_are_an_error() -> None:
    with pytest.raises(ValueError, match="hold 8 numbers, 5 each"):
        rows_of(flat([None, (0, 1), (1, 2)], 3), 4, 1, 3)


def test_a_text_that_ended_keeps_its_end_in_what_was_said_only() -> None:
    rows = rows_of(flat([(0, 5), (1, 1)], 3), 3, 0, 2)
    answer = Answer(1, np.array([5, 1], np.int32), True, None, rows)
    found = completion_of(Prompt(3, IDS), (1,), answer)
    assert (found.ids.tolist(), found.finish_reason) == ([5], "stop")
    assert found.said is not None
    assert found.said.ids.tolist() == [5, 1]
    assert found.said.target is not None
    np.testing.assert_allclose(found.said.target, [full_row(0)[5], full_row(1)[1]], atol=1e-6)


def test_a_text_that_was_cut_keeps_all() -> None:
    found = completion_of(Prompt(3, IDS), (1,), Answer(1, np.array([5, 6], np.int32), False))
    assert (found.ids.tolist(), found.finish_reason, found.said) == ([5, 6], "length", None)


def test_every_sampling_field_is_sent() -> None:
    sampling = Sampling(max_new_tokens=9, temperature=0.7, top_p=0.8, top_k=5, seed=3, logprobs=4)
    question = prompt_question(Prompt(6, IDS), sampling, (1, 4), 1)
    assert question.logprobs == 4
    assert question.sampling == {
        "n": 1,
        "max_tokens": 9,
        "min_tokens": 0,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [1, 4],
        "ignore_eos": False,
        "seed": seed_of(3, 6),
    }


def test_seeds_differ_by_seed_and_by_item_and_fit_vllm() -> None:
    found = {seed_of(seed, item) for seed in (-1, 0, 1, 2**63) for item in range(-1, 40)}
    assert len(found) == 4 * 41
    assert all(0 <= seed < 2**63 for seed in found)


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_temperatures_that_vllm_would_change_or_refuse_are_told(temperature: float) -> None:
    with pytest.raises(LimbeckError) as caught:
        check_sampling(Sampling(temperature=temperature))
    assert "0 (greedy) or 0.01 … 2.0" in str(caught.value)
