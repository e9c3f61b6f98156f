"""Tokens that weigh more or less, and tokens of which the teacher said nothing, against plain formulas in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Reason
from limbeck.functional import Answer, Head, SignalBatch, Term, Values, collate, head_loss
from limbeck.signals import Signal, TopK

N, D, V, K = 9, 6, 17, 4
ONE_TOKEN, TWO_TOKENS, ALL_TOKENS = 1, 2 * V * 8, 2**24  # chunk_bytes
WEIGHTS = [1.0, 0.0, 0.25, 3.0, 0.0, 0.5, 0.0, 1.0, 0.125]
SAID = [True, False, True, True, True, False, False, True, False]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("forward_kl", {"temperature": 2.0, "weight": 0.7}),
    ("reverse_kl", {"tail": "renormalise", "name": "other"}),
    ("jsd", {"temperature": 2.0, "tail": "drop"}),
    ("cross_entropy", {"weight": 0.3}),
]

Made = tuple[Term, Values]


class Case:
    """Random hidden states and a head, a teacher's logits and labels, in float64."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(5)
        self.hidden = torch.randn(N, D, generator=draw, dtype=torch.float64).requires_grad_()
        self.weight = torch.randn(V, D, generator=draw, dtype=torch.float64).requires_grad_()
        self.head = Head(self.weight, None, soft_cap=3.0)
        self.teacher = 2 * torch.randn(N, V, generator=draw, dtype=torch.float64)
        self.labels = torch.randint(0, V, (N,), generator=draw)

    def batch(self, weights: list[float] | None, said: list[bool] | None, rows: Any = slice(None)) -> SignalBatch:
        """What the teacher did not speak of is NaN: nothing may look there."""
        answer = Answer.of_logits(self.teacher[rows], K, (1.0, 2.0))
        if said is not None:
            mask = torch.tensor(said)[rows]
            at = {
                t: (a.masked_fill(~mask[:, None], torch.nan), b.masked_fill(~mask, torch.nan))
                for t, (a, b) in answer.at.items()
            }
            answer = Answer(answer.ids.masked_fill(~mask[:, None], -1), at, said=mask)
        weights_n = None if weights is None else torch.tensor(weights, dtype=torch.float64)[rows]
        return SignalBatch(self.labels[rows], {"top_k": answer}, weights_n=weights_n)

    def loss(self, made: list[Made], batch: SignalBatch, rows: Any = slice(None), **options: Any) -> Any:
        terms, values = [term for term, _ in made], {term.name: value for term, value in made}
        return head_loss(self.hidden[rows], self.head, batch, terms, values, **options)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return [grad.clone() for grad in torch.autograd.grad(loss, [self.hidden, self.weight], retain_graph=True)]


@pytest.fixture
def made(make: Callable[..., Made]) -> list[Made]:
    return [make(name, **options) for name, options in ASKED]


def expected_sums(formula: Callable[..., Tensor], case: Case, weights: list[float], said: list[bool]) -> list[Tensor]:
    """Σ w · loss of each term, the signal's terms over what was said."""
    logits = case.hidden @ case.weight.T
    logits = 3.0 * torch.tanh(logits / 3.0)
    ids = case.teacher.topk(K, dim=1).indices
    found = []
    for name, options in ASKED:
        w = torch.tensor(weights, dtype=torch.float64)
        if name != "cross_entropy":
            w = w * torch.tensor(said)
        found.append((w * formula(name, logits, case.teacher, ids, options, case.labels)).sum())
    return found


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("said", [None, SAID, [False] * N], ids=["all said", "some said", "nothing said"])
@pytest.mark.parametrize("chunk_bytes", [ONE_TOKEN, TWO_TOKENS, ALL_TOKENS])
def test_the_loss_is_the_weighted_sum_over_the_sum_of_weights(
    made: list[Made],
    formula: Callable[..., Tensor],
    weights: list[float] | None,
    said: list[bool] | None,
    chunk_bytes: int,
) -> None:
    case = Case()
    out = case.loss(made, case.batch(weights, said), chunk_bytes=chunk_bytes)
    sums = expected_sums(formula, case, weights or [1.0] * N, said or [True] * N)
    factors = [0.7, 1.0, 1.0, 0.3]
    total = sum(weights) if weights else N
    expected = sum((f * s for f, s in zip(factors, sums, strict=True)), torch.zeros(())) / total
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-12)
    for (term, _), value in zip(made, sums, strict=True):
        torch.testing.assert_close(out.sums[term.name], value.detach(), rtol=1e-12, atol=1e-12)
        assert not out.not_finite[term.name].any()
    for found, wanted in zip(case.gradients(out.loss), case.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_whole_vocabulary_is_weighed_alike(make: Callable[..., Made], formula: Callable[..., Tensor]) -> None:
    case = Case()
    logits = 3.0 * torch.tanh(case.hidden @ case.weight.T / 3.0)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    batch = SignalBatch(case.labels, full=torch.log_softmax(case.teacher, 1), weights_n=weights)
    options = {"temperature": 2.0}
    per_token = formula("forward_kl", logits, case.teacher, None, options, case.labels)
    expected = (weights * per_token).sum() / weights.sum()
    for chunk_bytes in (ONE_TOKEN, TWO_TOKENS, ALL_TOKENS):
        out = case.loss([make("forward_kl", **options)], batch, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-12)
        for found, wanted in zip(case.gradients(out.loss), case.gradients(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        assert float(out.diagnostics["compared"]) == sum(w > 0 for w in WEIGHTS)


def test_the_gradient_is_that_of_finite_differences(made: list[Made]) -> None:
    case = Case()
    batch = case.batch(WEIGHTS, SAID)
    analytic = case.gradients(case.loss(made, batch, chunk_bytes=TWO_TOKENS).loss)
    step = 1e-5
    for leaf, grad in zip([case.hidden, case.weight], analytic, strict=True):
        for entry in range(0, grad.numel(), 3):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[entry] += sign * step
                    sides.append(float(case.loss(made, batch).loss))
                    leaf.view(-1)[entry] -= sign * step
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(grad.reshape(-1)[entry].item(), abs=1e-6)


def test_a_weight_of_zero_is_as_if_the_token_were_not_kept(made: list[Made]) -> None:
    case = Case()
    kept = [i for i, w in enumerate(WEIGHTS) if w > 0]
    for said in (None, SAID):
        with_zeros = case.loss(made, case.batch(WEIGHTS, said))
        without = case.loss(made, case.batch(WEIGHTS, said, kept), kept)
        assert torch.equal(with_zeros.loss, without.loss)
        for found, wanted in zip(case.gradients(with_zeros.loss), case.gradients(without.loss), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)
        for name in ("teacher_mass", "student_mass", "top1_agreement", "compared"):
            torch.testing.assert_close(with_zeros.diagnostics[name], without.diagnostics[name])
    only = [float(w > 0) for w in WEIGHTS]  # weights of 0 and 1 are a mask
    masked, plain = case.loss(made, case.batch(only, None)), case.loss(made, case.batch(None, None, kept), kept)
    assert torch.equal(masked.loss, plain.loss)


def test_what_was_not_said_has_no_gradient_and_no_figure(make: Callable[..., Made]) -> None:
    case = Case()
    signal = [make("forward_kl"), make("reverse_kl")]
    out = case.loss(signal, case.batch(None, SAID), chunk_bytes=TWO_TOKENS)
    hidden, _ = case.gradients(out.loss)
    assert [bool(row.any()) for row in hidden] == SAID
    said = [i for i, yes in enumerate(SAID) if yes]
    alone = case.loss(signal, case.batch(None, None, said), said)
    for name in ("teacher_mass", "student_mass", "top1_agreement", "compared"):
        torch.testing.assert_close(out.diagnostics[name], alone.diagnostics[name])
    assert float(out.diagnostics["compared"]) == 5
    # the denominator stays that of all kept tokens
    torch.testing.assert_close(out.loss * N, alone.loss * len(said), rtol=1e-12, atol=0)


def test_accumulated_halves_give_the_whole(made: list[Made]) -> None:
    case = Case()
    counts = case.batch(WEIGHTS, SAID).counts
    assert counts["tokens"] == sum(WEIGHTS)
    whole = case.loss(made, case.batch(WEIGHTS, SAID))
    parts = [
        case.loss(made, case.batch(WEIGHTS, SAID, rows), rows, denominators=counts) for rows in (slice(4), slice(4, N))
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=1e-12, atol=0)
    sums = [sum(pair) for pair in zip(*(case.gradients(part.loss) for part in parts), strict=True)]
    for found, wanted in zip(sums, case.gradients(whole.loss), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_weights_that_sum_to_less_than_one_are_divided_by_their_sum(make: Callable[..., Made]) -> None:
    case = Case()
    light = case.loss([make("cross_entropy")], case.batch([0.01] * N, None))
    torch.testing.assert_close(light.loss, case.loss([make("cross_entropy")], case.batch(None, None)).loss)


def test_feature_losses_are_weighted_alike(make: Callable[..., Made]) -> None:
    term, values = make("hidden_mse", layers=[[1, 1]], sizes=(D, 5, V))
    assert isinstance(term.loss, torch.nn.Module)
    term.loss.double()
    case = Case()
    draw = torch.Generator().manual_seed(2)
    student = torch.randn(N, D, generator=draw, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(N, 5, generator=draw, dtype=torch.float64)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    batch = SignalBatch(case.labels, hidden={1: teacher}, weights_n=weights)
    out = head_loss(case.hidden, case.head, batch, [term], {term.name: values}, features={1: student})
    (projection,) = term.parameters
    expected = (weights * (student @ projection.T - teacher).square().mean(1)).sum() / sum(WEIGHTS)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=0)
    leaves = [student, projection]
    for found, wanted in zip(
        torch.autograd.grad(out.loss, leaves, retain_graph=True), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_loss_of_whole_rows_refuses_what_it_cannot_know(make: Callable[..., Made]) -> None:
    term, values = make("contrastive")
    case = Case()
    rows: dict[str, Any] = {
        "row_n": torch.tensor([0] * 4 + [1] * 5),
        "offsets_n2": torch.zeros(N, 2, dtype=torch.int64),
        "pair_r": torch.tensor([0, 0]),
        "chosen_r": torch.tensor([True, False]),
    }
    target = (torch.zeros(N, 1), torch.zeros(N))
    answers = {
        "weights": Answer(case.labels[:, None], {1.0: target}),
        "said nothing": Answer(case.labels[:, None], {1.0: target}, said=torch.tensor(SAID)),
    }
    for match, answer in answers.items():
        weights_n = torch.tensor(WEIGHTS) if match == "weights" else None
        batch = SignalBatch(case.labels, {"target": answer}, weights_n=weights_n, **rows)
        with pytest.raises(LimbeckError, match=match) as caught:
            head_loss(case.hidden, case.head, batch, [term], {term.name: values})
        assert caught.value.reason is Reason.CAPABILITY_MISSING


# ------------------------------------------------------------------------------------------------------------ collate


def sequence(trained: list[int], weights: Sequence[float] | None = None, length: int = 8) -> TokenSequence:
    mask = np.zeros(length, np.bool_)
    mask[trained] = True
    offsets = np.zeros((length, 2), np.int32)
    found = None if weights is None else np.array(weights, np.float32)
    return TokenSequence(0, np.arange(10, 10 + length, dtype=np.int32), mask, offsets, "rows.jsonl", 1, weights=found)


def signal(first_row: int, n: int, *, partial: bool = True) -> Signal:
    ids = np.array([[100 * (first_row + row) + i for i in range(3)] for row in range(n)]).reshape(n, 3)
    top_k = TopK.without_tail(ids, np.tile(np.log([0.5, 0.25, 0.125]), (n, 1)))
    target = -np.arange(first_row, first_row + n).astype(np.float32)
    return Signal(first_row, n, top_k, target, partial=partial)


def test_tokens_beyond_a_partial_signal_are_kept_and_marked() -> None:
    _, batch = collate([sequence([3, 4, 6]), sequence([2, 3])], [signal(2, 2), signal(1, 0)], (1.0,), pad_id=0)
    assert batch.labels.tolist() == [13, 14, 16, 12, 13]
    for name in ("top_k", "target"):
        said = batch.answers[name].said
        assert said is not None
        assert said.tolist() == [True, True, False, False, False]
    assert batch.answers["top_k"].ids[:, 0].tolist() == [200, 300, -1, -1, -1]
    assert batch.answers["target"].at[1.0][0][:2, 0].tolist() == [-2, -3]


def test_a_signal_that_is_not_partial_must_cover_every_kept_row() -> None:
    with pytest.raises(LimbeckError, match="covers rows 2 to 3; kept are 2 to 5"):
        collate([sequence([3, 4, 6])], [signal(2, 2, partial=False)], (1.0,), pad_id=0)
    _, batch = collate([sequence([3, 4])], [signal(2, 2)], (1.0,), pad_id=0)
    assert batch.answers["top_k"].said is None


def test_weights_go_with_their_tokens_and_zero_keeps_none() -> None:
    weighted = sequence([3, 4, 6], [9, 9, 9, 0.5, 0, 9, 2, 9])
    _, batch = collate([weighted, sequence([2])], [None, None], (1.0,), pad_id=0)
    assert batch.labels.tolist() == [13, 16, 12]
    assert batch.weights_n is not None
    assert batch.weights_n.tolist() == [0.5, 2, 1]
    assert batch.counts["tokens"] == 3.5
    for plain in (sequence([3]), sequence([3, 4], [1] * 4 + [0] + [1] * 3)):
        assert collate([plain], [None], (1.0,), pad_id=0)[1].weights_n is None


def test_every_mixture_of_saying_and_weighing_is_finite(made: list[Made]) -> None:
    case = Case()
    for said, weights in itertools.product((None, SAID, [False] * N), (None, WEIGHTS, [0.0] * N)):
        out = case.loss(made, case.batch(weights, said))
        assert all(grad.isfinite().all() for grad in case.gradients(out.loss))
