"""Quantisation, normalisation and the tail: what a captured support says at every temperature."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError, Reason
from limbeck.signals import TopK
from limbeck.signals.topk import SATURATED, dequantise, log1mexp, logsumexp, quantise

F64 = npt.NDArray[np.float64]
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
VOCAB = 262_144


def log_softmax(logits: F64) -> F64:
    return logits - logsumexp(logits)[:, None]


def capture(logits: F64, k: int, temperatures: tuple[float, ...]) -> TopK:
    """What an exact teacher says: float64 logits [n, v] → its k best ids, tails over the complement."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    tails = []
    for temperature in temperatures:
        rest = log_softmax(logits / temperature)
        np.put_along_axis(rest, ids, -np.inf, axis=1)
        tails.append(logsumexp(rest))
    logprobs = np.take_along_axis(log_softmax(logits), ids, axis=1)
    return TopK.from_logprobs(ids, logprobs, np.stack(tails, axis=1), temperatures)


def kl_to_truth(logits: F64, top: TopK, temperature: float, k: int | None = None) -> F64:
    """KL(p‖p̂) per row on the decoded ids and the tail, p in float64 from the logits."""
    ids, logprobs, tail = top.at(temperature, k)
    p = log_softmax(logits / temperature)
    rest = p.copy()
    np.put_along_axis(rest, ids.astype(np.int64), -np.inf, axis=1)
    on, off = np.take_along_axis(p, ids.astype(np.int64), axis=1), logsumexp(rest)
    with np.errstate(invalid="ignore"):  # 0 · ∞ where p is 0: selected away
        inside = np.where(np.isneginf(on), 0.0, np.exp(on) * (on - logprobs)).sum(axis=1)
        outside: F64 = np.where(np.isneginf(off), 0.0, np.exp(off) * (off - tail))
    return inside + outside


# ------------------------------------------------------------------------------------------------------ the code


@pytest.mark.parametrize(
    ("logprob", "code"),
    [
        (0.0, 0),
        (0.001, 0),  # rounding of the teacher's arithmetic
        (-0.0, 0),
        (-1 / 2048, 1),
        (-0.5 / 2048, 0),  # halves go to the even code
        (-1.5 / 2048, 2),
        (-0.51 / 2048, 1),
        (-15.99951171875, 32767),
        (-15.9998, 32768),  # rounds up to the knee
        (-16.0, 32768),
        (-16 - 1 / 512, 32769),
        (-16 - 0.5 / 512, 32768),
        (-16 - 1.5 / 512, 32770),
        (-79.99609375, 65534),
        (-79.998046875, 65535),
        (-79.998, 65535),
        (-80.0, 65535),
        (-1e30, 65535),
        (-math.inf, 65535),
    ],
)
def test_a_log_probability_becomes_the_nearest_code(logprob: float, code: int) -> None:
    assert int(quantise(np.array([logprob]))[0]) == code
    assert int(quantise(np.array([logprob], np.float32))[0]) == code


def test_every_code_decodes_to_a_value_that_encodes_to_it() -> None:
    u = np.arange(65536).astype(np.uint16)
    values = dequantise(u)
    assert (quantise(values) == u).all()
    assert (values.astype(np.float32) == values).all()
    assert (np.diff(values) < 0).all()
    assert values[[0, 32767, 32768, 65535]].tolist() == [0.0, -32767 / 2048, -16.0, -79.998046875]


@given(st.lists(st.floats(-79.99, 0.0), min_size=1, max_size=50))
def test_the_rounding_is_at_most_half_a_step(values: list[float]) -> None:
    x = np.array(values)
    error = np.abs(dequantise(quantise(x)) - x)
    assert (error <= np.where(x > -16.0, 0.5 / 2048, 0.5 / 512)).all()


@given(st.lists(st.floats(-90.0, 0.0, width=32), min_size=1, max_size=50))
@example([-16.055667877197266])  # just past the middle of two codes: one sum in float32 would make it the middle
def test_float32_and_float64_give_the_same_codes(values: list[float]) -> None:
    x = np.array(values, np.float32)
    assert (quantise(x) == quantise(x.astype(np.float64))).all()


def test_log1mexp_keeps_its_digits_at_both_ends() -> None:
    getcontext().prec = 350
    for x in (-1e-300, -1e-16, -1e-9, -0.1, -0.6931, -0.6932, -1.0, -30.0, -700.0):
        expected = float((1 - Decimal(x).exp()).ln())
        assert log1mexp(np.array([x]))[0] == pytest.approx(expected, rel=1e-15)
    assert log1mexp(np.array([-np.inf, 0.0])).tolist() == [0.0, -np.inf]


# --------------------------------------------------------------------------------------------- what at() answers


@pytest.mark.parametrize("scale", [1.0, 4.0, 12.0])
def test_kl_to_the_truth_stays_under_1e_7_on_a_large_vocabulary(scale: float) -> None:
    logits = np.random.default_rng(int(scale)).normal(size=(3, VOCAB)) * scale
    top = capture(logits, 64, TEMPERATURES)
    for temperature in TEMPERATURES:
        for k in (64, 16, 1):
            kl = kl_to_truth(logits, top, temperature, k)
            assert (np.abs(kl) <= 1e-7).all(), (temperature, k, kl)


def test_a_row_is_normalised_at_every_temperature_and_k() -> None:
    top = capture(np.random.default_rng(0).normal(size=(5, 2000)) * 5, 32, TEMPERATURES)
    for temperature in TEMPERATURES:
        for k in (None, 32, 31, 2, 1):
            ids, logprobs, tail = top.at(temperature, k)
            assert ids.shape == logprobs.shape == (5, k or 32)
            np.testing.assert_allclose(np.exp(logprobs).sum(axis=1) + np.exp(tail), 1.0, rtol=1e-13)


@given(st.integers(1, 9), st.floats(0.1, 30.0), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_smaller_k_is_the_same_distribution_with_the_rest_merged(k: int, scale: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, 50)) * scale
    top = capture(logits, 10, TEMPERATURES)
    for temperature in TEMPERATURES:
        ids, logprobs, tail = top.at(temperature)
        fewer_ids, fewer, fewer_tail = top.at(temperature, k)
        assert (fewer_ids == ids[:, :k]).all()
        assert (fewer == logprobs[:, :k]).all()
        merged = np.exp(tail) + np.exp(logprobs[:, k:]).sum(axis=1)
        np.testing.assert_allclose(np.exp(fewer_tail), merged, rtol=1e-12)


def test_the_exact_tail_survives_rows_that_are_all_but_certain() -> None:
    logits = np.zeros((1, 1000))
    logits[0, 7] = 45.0  # 1 − p is 2.8e-17: below float64's resolution of 1 − Σ
    top = capture(logits, 1, (1.0, 0.5))
    for temperature in (1.0, 0.5):
        _, logprobs, tail = top.at(temperature)
        assert tail[0] == pytest.approx(math.log(999) - 45.0 / temperature, abs=1e-5)
        assert logprobs[0, 0] == pytest.approx(-999 * math.exp(-45.0 / temperature), rel=1e-4)


def test_a_support_of_the_whole_vocabulary_has_no_tail() -> None:
    logits = np.random.default_rng(3).normal(size=(4, 12)) * 3
    top = capture(logits, 12, TEMPERATURES)
    assert np.isneginf(top.tails).all()
    for temperature in TEMPERATURES:
        _, logprobs, tail = top.at(temperature)
        assert np.isneginf(tail).all()
        np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1.0, rtol=1e-13)
        assert (kl_to_truth(logits, top, temperature) < 1e-7).all()
    assert np.isfinite(top.at(1.0, 5)[2]).all()


def test_suppressed_ids_saturate_and_stay_finite() -> None:
    logits = np.array([[1.0, 2.0, 0.0, -np.inf]])
    top = capture(logits, 4, (1.0, 2.0))
    assert top.saturated == 1
    assert top.u[0, -1] == SATURATED
    assert np.isfinite(top.at(1.0)[1]).all()
    assert (np.abs(kl_to_truth(logits, top, 1.0)) < 1e-7).all()


def test_rows_are_sorted_by_code_then_id_whatever_the_order_given() -> None:
    p = np.array([[0.2, 0.5, 0.2, 0.05]])
    top = TopK.from_logprobs(np.array([[9, 4, 2, 7]]), np.log(p), np.log([[0.05]]), [1.0])
    assert top.ids.tolist() == [[4, 2, 9, 7]]
    assert top.ids.dtype == np.int32
    assert top.u.dtype == np.uint16
    assert top.tails.dtype == np.float32
    part = capture(np.random.default_rng(0).normal(size=(6, 40)), 4, (1.0,)).take(np.array([4, 1]))
    assert (part.n, part.k) == (2, 4)


# ---------------------------------------------------------------------------------------------- what is refused


def refused(ids: list[list[int]], logprobs: list[list[float]], tails: list[list[float]]) -> str:
    with pytest.raises(LimbeckError) as caught:
        TopK.from_logprobs(np.array(ids), np.array(logprobs), np.array(tails), [1.0])
    assert caught.value.reason is Reason.SIGNAL_INVALID
    return str(caught.value)


HALF = math.log(0.5)


def test_nan_values_above_zero_and_repeated_ids_are_refused_with_their_row() -> None:
    text = refused([[1, 2], [3, 3]], [[HALF, math.nan], [HALF, 0.0011]], [[HALF], [math.nan]])
    assert "a log-probability is NaN in row 0 (1 of 2 rows have it)" in text
    assert "a log-probability is above 0 (0.0011) in row 1" in text
    assert "a tail is NaN in row 1" in text
    assert "an id comes twice in row 1" in text
    assert "a tail is above 0 (0.5) in row 0" in refused([[1]], [[HALF]], [[0.5]])
    assert "an id is below 0 (-1) in row 0" in refused([[-1]], [[HALF]], [[HALF]])


def test_ids_and_tail_that_do_not_sum_to_one_are_refused() -> None:
    assert "do not sum to 1 (1.5) in row 0" in refused([[1, 2]], [[HALF, HALF]], [[HALF]])
    assert "do not sum to 1 (0.75) in row 1" in refused([[1], [1]], [[HALF], [math.log(0.25)]], [[HALF], [HALF]])


def test_shapes_that_do_not_fit_are_refused() -> None:
    assert "[n, k], [n, k] and [n, temperatures] are needed" in refused([[1, 2]], [[HALF]], [[HALF]])
    assert "tails (1, 2) for 1 temperatures" in refused([[1]], [[HALF]], [[HALF, HALF]])


@pytest.mark.parametrize(("temperature", "k"), [(1.5, 4), (1.0, 5), (1.0, 0)])
def test_what_was_not_captured_is_never_guessed(temperature: float, k: int) -> None:
    top = capture(np.random.default_rng(0).normal(size=(1, 40)), 4, (1.0, 2.0))
    with pytest.raises(LimbeckError) as caught:
        top.at(temperature, k)
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert "holds temperature 1, 2 with 4 ids" in str(caught.value)


def test_fewer_ids_merge_the_rest_into_the_tail_and_more_say_nothing() -> None:
    logits = np.random.default_rng(3).normal(size=(50, 40)) * 4
    top = capture(logits, 8, (1.0,))
    fewer = top.resized(3)
    assert fewer.k == 3
    for found, expected in zip(fewer.at(1.0), top.at(1.0, 3), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-7, atol=1e-6)  # a float32 tail
    np.testing.assert_array_equal(fewer.u, top.u[:, :3])  # not rounded a second time
    more = fewer.resized(6)
    np.testing.assert_array_equal(more.ids[:, :3], fewer.ids)
    np.testing.assert_array_equal(more.tails, fewer.tails)
    assert (more.u[:, 3:] == SATURATED).all()
    assert all(len(set(row)) == 6 for row in more.ids.tolist())
    np.testing.assert_allclose(more.at(1.0)[1][:, :3], fewer.at(1.0)[1], rtol=0, atol=1e-12)


def test_added_ids_are_in_order_with_those_that_were_saturated() -> None:
    logprobs = np.array([[math.log(0.9), -90.0], [math.log(0.5), math.log(0.3)]])
    top = TopK.without_tail(np.array([[3, 2], [0, 7]]), logprobs).resized(4)
    assert top.ids.tolist() == [[3, 0, 1, 2], [0, 7, 1, 2]]
    assert top.u[0].tolist()[1:] == [SATURATED] * 3
