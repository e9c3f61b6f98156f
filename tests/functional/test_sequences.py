"""Sequence and feature losses through the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Reason
from limbeck.functional import Answer, Head, SignalBatch, Term, Values, head_loss

Made = tuple[Term, Values]
N, D, V = 10, 6, 17
ROW_N = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])
PAIR_R = torch.tensor([0, 0, 1, 1])
CHOSEN_R = torch.tensor([True, False, False, True])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(tokens: Any = slice(None), rows: Any = slice(None), **more: Any) -> SignalBatch:
    """Two preference pairs, the second one's rejected row first; or some tokens of some rows of them."""
    labels = torch.arange(N)[tokens]
    reference = -normal(3, N).abs()[tokens]
    row_n = ROW_N[tokens]
    answers = {"target": Answer(labels[:, None], {1.0: (reference[:, None], torch.zeros(len(labels)))})}
    offsets = torch.stack([torch.arange(N), torch.arange(N) + 1], 1)[tokens]
    return SignalBatch(
        labels,
        {**answers, **more.pop("answers", {})},
        row_n=row_n - row_n.min(),
        offsets_n2=offsets,
        pair_r=PAIR_R[rows] - PAIR_R[rows].min(),
        chosen_r=CHOSEN_R[rows],
        places=[("pairs.jsonl", 1), ("pairs.jsonl", 1), ("pairs.jsonl", 2), ("pairs.jsonl", 2)][rows],
        **more,
    )


def dpo(logits: Tensor, batch: SignalBatch, beta: float) -> Tensor:
    """−log σ(beta · (margin of the chosen − margin of the rejected)), written out pair by pair (Rafailov et al.)."""
    student = torch.log_softmax(logits, 1)[torch.arange(N), batch.labels]
    reference = batch.answers["target"].at[1.0][0][:, 0]
    margin = [(student - reference)[row == ROW_N].sum() for row in range(4)]
    values = [-torch.log(torch.sigmoid(beta * (margin[c] - margin[r]))) for c, r in ((0, 1), (3, 2))]
    return torch.stack(values)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("chunk_bytes", [1, 3 * V * 8, 2**24])
def test_contrastive_is_dpo(make: Callable[..., Made], beta: float, chunk_bytes: int) -> None:
    hidden, weight = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_()
    batch = pairs()
    term, values = make("contrastive", beta=beta, weight=0.5)
    expected = 0.5 * dpo(hidden @ weight.T, batch, beta).mean()
    out = head_loss(hidden, Head(weight), batch, [term], {"contrastive": values}, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(out.loss, [hidden, weight])
    torch.testing.assert_close(found, torch.autograd.grad(expected, [hidden, weight]), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        evaluated = head_loss(hidden, Head(weight), batch, [term], {"contrastive": values}).loss
    torch.testing.assert_close(evaluated, expected.detach(), rtol=1e-10, atol=1e-12)


def test_with_token_losses_at_two_temperatures_on_a_capped_head(
    make: Callable[..., Made], formula: Callable[..., Tensor]
) -> None:
    hidden, weight, teacher = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_(), normal(2, N, V)
    batch = pairs(answers={"top_k": Answer.of_logits(teacher, 4, (1.0, 2.0))})
    made = [make("forward_kl", temperature=2.0), make("contrastive"), make("cross_entropy", weight=0.3)]
    terms, values = [term for term, _ in made], {term.name: knobs for term, knobs in made}
    z = 3.0 * torch.tanh(hidden @ weight.T / 3.0)
    ids = teacher.topk(4, 1).indices
    expected = (
        formula("forward_kl", z, teacher, ids, {"temperature": 2.0}, batch.labels).mean()
        + dpo(z, batch, 0.1).mean()
        + 0.3 * formula("cross_entropy", z, None, None, {}, batch.labels).mean()
    )
    out = head_loss(hidden, Head(weight, soft_cap=3.0), batch, terms, values, chunk_bytes=2 * V * 8)
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(out.loss, [hidden, weight])
    torch.testing.assert_close(found, torch.autograd.grad(expected, [hidden, weight]), rtol=1e-10, atol=1e-12)


def test_pairs_accumulated_equal_the_whole(make: Callable[..., Made]) -> None:
    hidden, weight = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_()
    term, values = make("contrastive")
    whole = head_loss(hidden, Head(weight), pairs(), [term], {"contrastive": values})
    expected = [whole.loss.detach(), *torch.autograd.grad(whole.loss, [hidden, weight])]
    total = torch.zeros((), dtype=torch.float64)
    for tokens, rows in ((slice(0, 4), slice(0, 2)), (slice(4, 10), slice(2, 4))):
        part = head_loss(
            hidden[tokens], Head(weight), pairs(tokens, rows), [term], {"contrastive": values},
            {"tokens": N, "rows": 4, "pairs": 2},
        )  # fmt: skip
        part.loss.backward()
        total += part.loss.detach()
    torch.testing.assert_close([total, hidden.grad, weight.grad], expected, rtol=1e-10, atol=1e-12)


def test_half_a_pair_is_refused_by_its_place(make: Callable[..., Made]) -> None:
    term, values = make("contrastive")
    batch = pairs(slice(0, 8), slice(0, 3))
    with pytest.raises(LimbeckError) as caught:
        head_loss(normal(0, 8, D), Head(normal(1, V, D)), batch, [term], {"contrastive": values})
    assert caught.value.reason == Reason.DATA_INVALID
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [("pairs.jsonl", 2)]


def test_a_pair_that_is_not_finite_names_both_rows(make: Callable[..., Made]) -> None:
    term, values = make("contrastive")
    hidden = normal(0, N, D)
    hidden[5] = float("nan")
    out = head_loss(hidden, Head(normal(1, V, D)), pairs(), [term], {"contrastive": values})
    assert out.not_finite["contrastive"].tolist() == [False] * 4 + [True] * 6
    with pytest.raises(LimbeckError) as caught:
        out.check(pairs())
    assert {problem.line for problem in caught.value.problems} == {2}


def test_without_a_reference_the_signal_is_named(make: Callable[..., Made]) -> None:
    term, values = make("contrastive")
    batch = pairs()
    bare = SignalBatch(
        batch.labels, row_n=ROW_N, offsets_n2=batch.offsets_n2, pair_r=PAIR_R, chosen_r=CHOSEN_R, places=batch.places
    )
    with pytest.raises(LimbeckError, match="target"):
        head_loss(normal(0, N, D), Head(normal(1, V, D)), bare, [term], {"contrastive": values})
    with pytest.raises(LimbeckError, match="rows of its tokens"):
        head_loss(normal(0, N, D), Head(normal(1, V, D)), SignalBatch(batch.labels), [term], {"contrastive": values})


@pytest.mark.parametrize("widths", ["equal", "different"])
def test_hidden_mse_is_the_mean_squared_error_through_its_projection(make: Callable[..., Made], widths: str) -> None:
    size = D if widths == "equal" else 10
    term, values = make("hidden_mse", layers=[[1, 2], [2, 4]], sizes=(D, size, V))
    if widths == "different":
        term.loss.double()  # type: ignore[union-attr]
    assert len(term.parameters) == (0 if widths == "equal" else 2)
    student = {layer: normal(layer, N, D).requires_grad_() for layer in (1, 2)}
    teacher = {layer: normal(10 + layer, N, size) for layer in (2, 4)}
    hidden, weight = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_()
    batch = SignalBatch(torch.arange(N), hidden=teacher)
    out = head_loss(hidden, Head(weight), batch, [term], {"hidden_mse": values}, features=student)
    maps = list(term.parameters) or [torch.eye(D, dtype=torch.float64)] * 2
    errors = [student[1] @ maps[0].T - teacher[2], student[2] @ maps[1].T - teacher[4]]
    expected = torch.stack([(error**2).mean() for error in errors]).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-12)
    leaves = [*student.values(), *term.parameters]
    found = torch.autograd.grad(out.loss, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_missing_layer_is_named(make: Callable[..., Made], whose: str) -> None:
    term, values = make("hidden_mse", layers=[[1, 2]])
    features = {1: normal(1, N, D)} if whose == "teacher" else {}
    batch = SignalBatch(torch.arange(N), hidden={2: normal(2, N, 10)} if whose == "student" else {})
    layer = 1 if whose == "student" else 2
    with pytest.raises(LimbeckError, match=rf"{whose}'s layers \[{layer}\]"):
        head_loss(normal(0, N, D), Head(normal(1, V, D)), batch, [term], {"hidden_mse": values}, features=features)


def test_a_token_loss_may_own_parameters(make: Callable[..., Made]) -> None:
    """The gradient of a loss's own parameter is gathered over the chunks."""
    from limbeck.interfaces import Needs, Support

    class Sharpened(torch.nn.Module):
        needs = Needs("none")

        def __init__(self) -> None:
            super().__init__()
            self.power = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, student: Support, teacher: Support, knobs: Any) -> Tensor:
            return (-student.on_support[:, 0]) ** self.power

    loss = Sharpened()
    term = Term("sharpened", "token", loss, loss.needs)
    contrast, knobs = make("contrastive")
    hidden, weight = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_()
    batch = pairs()
    label = torch.log_softmax(hidden @ weight.T, 1)[torch.arange(N), batch.labels]
    expected = ((-label) ** loss.power).mean() + dpo(hidden @ weight.T, batch, 0.1).mean()
    values = {"sharpened": Values(), "contrastive": knobs}
    out = head_loss(hidden, Head(weight), batch, [term, contrast], values, chunk_bytes=2 * V * 8)
    leaves = [hidden, weight, loss.power]
    found = torch.autograd.grad(out.loss, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12)


def test_a_sequence_loss_may_own_parameters() -> None:
    from limbeck.interfaces import Needs, SequenceBatch

    class Scaled(torch.nn.Module):
        needs = Needs(normaliser="rows")

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, batch: SequenceBatch, knobs: Any) -> Tensor:
            total_r = torch.zeros(batch.rows, dtype=torch.float64).index_add(0, batch.row_n, batch.logprobs["student"])
            return (self.scale * total_r) ** 2

    loss = Scaled()
    hidden, weight = normal(0, N, D).requires_grad_(), normal(1, V, D).requires_grad_()
    batch = pairs()
    label = torch.log_softmax(hidden @ weight.T, 1)[torch.arange(N), batch.labels]
    expected = torch.stack([(loss.scale * label[row == ROW_N].sum()) ** 2 for row in range(4)]).mean()
    term = Term("scaled", "sequence", loss, loss.needs)
    out = head_loss(hidden, Head(weight), batch, [term], {"scaled": Values()}, chunk_bytes=2 * V * 8)
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    leaves = [hidden, weight, loss.scale]
    found = torch.autograd.grad(out.loss, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12)
