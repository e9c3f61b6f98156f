"""Published test vectors and small cases, and what losses do with probabilities of 0."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.functional import Answer, Head, SignalBatch, Term, Values, head_loss
from limbeck.interfaces import LossContext
from limbeck.losses import PLUGINS

BY_NAME = {plugin.name: plugin for plugin in PLUGINS}
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
A_STUDENT = [
    [[1.1250, -.4102, -.0879, -2.5], [.2676, .3535, .8711, -1.4688], [-.1084, 1.6641, .0084, .1196],
     [.5, -.6406, -.2236, -1.5938]],
    [[-1.5312, -1.9219, 0, -.5039], [-1.5391, 1.5312, .5820, .2695], [-.3887, 1.2188, 0, .6055],
     [.5, 1.3828, .1309, -1.0312]],
]  # fmt: skip
A_TEACHER = [
    [[-.0381, -1.2578, -1.2031, .0947], [-.7852, .4492, 1.5547, .0972], [.8203, .0012, .7656, .3477],
     [-1.5781, .4297, .5977, .3926]],
    [[1.5156, .1641, 2.0781, -.7734], [-.5898, .4453, -.7969, .6328], [.6289, -.8359, .9258, .2109],
     [.0006, .5195, 3.2344, -1.5781]],
]  # fmt: skip
B_STUDENT = [[0.0, 9, 8, 1, 0, 0], [8, 7, 0, 0, 9, 0], [9, 8, 7, 0, 0, 0]]
B_IDS = [[1, 2], [4, 5], [3, 4]]
B_TEACHER = [[0.7, 0.2], [0.6, 0.3], [0.5, 0.4]]


def values_of(
    plugin: str, logits: Any, batch: SignalBatch, **options: Any
) -> tuple[float, Mapping[str, Tensor], Tensor]:
    """Mean loss of student `logits` [n, v], the diagnostics, and the logits' gradient.

    The head is the identity; one row's logits come as the bias, since −inf times 0 is no logit.
    """
    config = BY_NAME[plugin].config.model_validate(options)
    term = Term.of(BY_NAME[plugin], config, LossContext(4, None, 4))
    knobs = {"teacher_weight": options.get("teacher_weight", 0.5)} if plugin == "jsd" else {}
    z = torch.as_tensor(logits, dtype=torch.float64).clone().requires_grad_()
    hidden, head = z, Head(torch.eye(z.shape[1], dtype=torch.float64))
    if len(z) == 1:
        hidden, head = z.new_zeros(1, 1), Head(z.new_zeros(z.shape[1], 1).detach(), z[0])
    out = head_loss(hidden, head, batch, [term], {plugin: Values(knobs=knobs)})
    out.loss.backward()
    assert z.grad is not None
    return out.loss.item(), out.diagnostics, z.grad


def full(p: Any) -> SignalBatch:
    """A batch whose teacher gives the whole vocabulary: probabilities [n, v]."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return SignalBatch(torch.zeros(len(p), dtype=torch.int64), full=p.log())


def on(ids: Any, p: Any) -> SignalBatch:
    """A batch whose teacher gives probabilities [n, k] of some ids, and the rest as tail."""
    ids, p = torch.as_tensor(ids), torch.as_tensor(p, dtype=torch.float64)
    tail = torch.log1p(-p.sum(1).clamp(max=1 - 1e-300))
    return SignalBatch(torch.zeros(len(p), dtype=torch.int64), {"top_k": Answer(ids, {1.0: (p.log(), tail)})})


def log(q: Any) -> Tensor:
    return torch.as_tensor(q, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("plugin", "q", "p", "expected"),
    [
        ("forward_kl", [[0.1, 0.9]], [[0.9, 0.1]], 1.75778),
        ("reverse_kl", [[0.1, 0.9]], [[0.9, 0.1]], 1.75778),
        ("forward_kl", [[0.8, 0.2]], [[0.5, 0.5]], 0.223144),
    ],
)
def test_two_outcomes(plugin: str, q: Any, p: Any, expected: float) -> None:
    assert values_of(plugin, log(q), full(p))[0] == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(("tail", "expected"), [("renormalise", 0.290788), ("bucket", 0.232630)])
def test_two_ids_of_three(tail: str, expected: float) -> None:
    batch = on([[1, 0]], [[0.6, 0.2]])
    assert values_of("forward_kl", log([[0.5, 0.3, 0.2]]), batch, tail=tail)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("plugin", DIVERGENCES)
def test_equal_distributions_have_no_divergence_and_no_gradient(plugin: str, tail: str) -> None:
    p = torch.softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1)
    for batch in (full(p), on([[3, 1, 0]] * 5, p[:, [3, 1, 0]])):
        value, _, grad = values_of(plugin, p.log(), batch, tail=tail)
        assert value == pytest.approx(0, abs=1e-15)
        if tail != "drop":  # KL without its tail has its minimum elsewhere
            assert grad.abs().max() < 1e-15


def test_published_logits_a() -> None:
    zs = torch.tensor(A_STUDENT, dtype=torch.float64).reshape(-1, 4)
    p = torch.softmax(torch.tensor(A_TEACHER, dtype=torch.float64).reshape(-1, 4), 1)
    assert values_of("forward_kl", zs, full(p))[0] == pytest.approx(0.62929, abs=5e-6)
    entropy = -(p * p.log()).sum(1).mean()
    assert values_of("forward_kl", zs, full(p))[0] + entropy.item() == pytest.approx(1.72088, abs=5e-6)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [("drop", [-0.089160, 2.399380, 7.753977]), ("bucket", [0.437592, 2.278531, 7.523735])],
)
def test_published_logits_b(tail: str, expected: list[float]) -> None:
    for row, number in enumerate(expected):
        batch = on(B_IDS[row : row + 1], B_TEACHER[row : row + 1])
        value, diagnostics, _ = values_of("forward_kl", B_STUDENT[row : row + 1], batch, tail=tail)
        assert value == pytest.approx(number, abs=1e-6)
        mass = [0.999484, 0.665159, 0.000164][row]
        assert diagnostics["student_mass"].item() == pytest.approx(mass, abs=1e-6)
        assert diagnostics["teacher_mass"].item() == pytest.approx(sum(B_TEACHER[row]))


def test_the_gradient_of_dropped_tail_forward_kl_is_m_q_minus_p() -> None:
    _, _, grad = values_of("forward_kl", B_STUDENT, on(B_IDS, B_TEACHER), tail="drop")
    q = torch.softmax(torch.tensor(B_STUDENT, dtype=torch.float64), 1)
    p = torch.zeros_like(q).scatter(1, torch.tensor(B_IDS), torch.tensor(B_TEACHER, dtype=torch.float64))
    torch.testing.assert_close(grad, (p.sum(1, keepdim=True) * q - p) / 3, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------- 0 · inf (C34)


def numbers(values: Any) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in values], dtype=torch.float64)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("plugin", DIVERGENCES)
def test_an_id_suppressed_in_both_counts_nothing(data: Path, plugin: str, tail: str) -> None:
    case = json.loads((data / "C34" / "vectors.json").read_text())[0]
    zs, zt = numbers([case["student"]]), numbers([case["teacher"]])
    p = torch.softmax(zt, 1)
    answers = {"all ids": Answer.of_logits(zt, 4), "two ids": Answer.of_logits(zt, 2)}
    batches = {name: SignalBatch(torch.zeros(1, dtype=torch.int64), {"top_k": x}) for name, x in answers.items()}
    batches["full"] = full(p)
    explicit = Answer(torch.tensor([[0, 1, 2, 3]]), {1.0: (p.log(), torch.tensor([-math.inf]))})
    batches["impossible id in the support"] = SignalBatch(torch.zeros(1, dtype=torch.int64), {"top_k": explicit})
    for name, batch in batches.items():
        value, _, grad = values_of(plugin, zs, batch, tail=tail)
        assert math.isfinite(value), name
        assert grad.isfinite().all(), name
        assert grad[0, 3] == 0, name
        if plugin in case and name != "two ids":
            assert value == pytest.approx(case[plugin], abs=1e-12), name


@pytest.mark.parametrize("plugin", ["cross_entropy", "sequence_kd"])
def test_cross_entropy_beside_a_suppressed_id(data: Path, plugin: str) -> None:
    case = json.loads((data / "C34" / "vectors.json").read_text())[0]
    zs = numbers([case["student"]])
    value, _, grad = values_of(plugin, zs, SignalBatch(torch.tensor([1])))
    assert value == pytest.approx(-torch.softmax(zs, 1)[0, 1].log().item(), abs=1e-12)
    assert grad.isfinite().all()
    assert grad[0, 3] == 0


CASES = [(name, {"tail": tail}) for name in DIVERGENCES for tail in ("bucket", "renormalise", "drop")]


@pytest.mark.parametrize(("plugin", "options"), [*CASES, ("cross_entropy", {}), ("sequence_kd", {})])
@pytest.mark.parametrize("signal", ["top_k", "full"])
def test_garbage_where_the_mask_is_0_and_nothing_kept(
    data: Path, plugin: str, options: dict[str, str], signal: str
) -> None:
    _, garbage, nothing = json.loads((data / "C34" / "vectors.json").read_text())
    zs, zt = numbers(garbage["student"]), numbers(garbage["teacher"])

    def result(mask: list[int]) -> tuple[Tensor, Tensor]:
        kept = torch.tensor(mask, dtype=torch.bool)
        labels = torch.tensor([[-100, *(0 if keep else -100 for keep in mask)]])
        teacher = zt[kept]
        answers = {"top_k": Answer.of_logits(teacher, 1)} if signal == "top_k" else {}
        batch = SignalBatch.of_labels(labels, answers=answers, full=torch.log_softmax(teacher, 1))
        states = torch.cat([zs, zs[-1:]])[None].requires_grad_()
        term = Term.of(BY_NAME[plugin], BY_NAME[plugin].config.model_validate(options), LossContext(2, None, 2))
        knobs = {"teacher_weight": 0.5} if plugin == "jsd" else {}
        head = Head(torch.eye(2, dtype=torch.float64))
        out = head_loss(batch.select(states), head, batch, [term], {plugin: Values(knobs=knobs)})
        out.loss.backward()
        out.check(batch)
        assert states.grad is not None
        return out.loss.detach(), states.grad[0]

    loss, grad = result(garbage["mask"])
    expected, _, expected_grad = values_of(
        plugin, zs[:1], SignalBatch(torch.tensor([0]), _one(signal, zt), full=torch.log_softmax(zt[:1], 1)), **options
    )
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(grad[:1], expected_grad)
    assert (grad[1:] == 0).all()
    loss, grad = result(nothing["mask"])
    assert loss == 0
    assert (grad == 0).all()


def _one(signal: str, zt: Tensor) -> dict[str, Answer]:
    return {"top_k": Answer.of_logits(zt[:1], 1)} if signal == "top_k" else {}


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("plugin", DIVERGENCES)
def test_a_probability_of_0_on_the_side_that_weighs_counts_exactly_0(plugin: str, tail: str) -> None:
    certain = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    batch = SignalBatch(
        torch.zeros(1, dtype=torch.int64),
        {"top_k": Answer(torch.tensor([[0, 1]]), {1.0: (certain[:, :2], certain[:, 2])})},
    )
    if plugin != "reverse_kl":  # p = 0 beside q > 0
        value, _, grad = values_of(plugin, log([[0.5, 0.3, 0.2]]), batch, tail=tail)
        assert math.isfinite(value)
        assert grad.isfinite().all()
    if plugin == "forward_kl" and tail == "bucket":
        assert value == pytest.approx(math.log(2), abs=1e-12)
        torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.3, 0.2]], dtype=torch.float64))
    # q = 0 beside p > 0, on the support and in the tail
    batch = on([[0, 1]], [[0.5, 0.3]])
    if plugin != "forward_kl":
        value, _, grad = values_of(plugin, [[1.0, -math.inf, -math.inf]], batch, tail=tail)
        assert math.isfinite(value)
        assert grad.isfinite().all()
        assert (grad[0, 1:] == 0).all()


@pytest.mark.parametrize("plugin", ["forward_kl", "reverse_kl", "jsd"])
def test_the_bucket_is_never_negative_and_never_above_the_full_divergence(plugin: str) -> None:
    draw = torch.Generator().manual_seed(7)
    for _ in range(50):
        zs, zt = (4 * torch.randn(1, 9, generator=draw, dtype=torch.float64) for _ in range(2))
        whole = values_of(plugin, zs, full(torch.softmax(zt, 1)))[0]
        for k in (1, 3, 8):
            batch = SignalBatch(torch.zeros(1, dtype=torch.int64), {"top_k": Answer.of_logits(zt, k)})
            assert -1e-14 <= values_of(plugin, zs, batch)[0] <= whole + 1e-12


def test_jsd_meets_forward_and_reverse_kl_at_its_ends() -> None:
    zs, zt = torch.tensor([[0.3, -1.0, 0.7]]), torch.tensor([[1.0, 0.2, -0.5]])
    batch = full(torch.softmax(zt.double(), 1))
    forward, reverse = (values_of(name, zs, batch)[0] for name in ("forward_kl", "reverse_kl"))
    w = 1e-6
    assert values_of("jsd", zs, batch, teacher_weight=w)[0] / w == pytest.approx(forward, rel=1e-4)
    assert values_of("jsd", zs, batch, teacher_weight=1 - w)[0] / w == pytest.approx(reverse, rel=1e-4)


@pytest.mark.parametrize("plugin", DIVERGENCES)
def test_tails_of_peaked_rows_are_right_in_fp32(plugin: str) -> None:
    """1 − Σ would be 0 or negative here; a logsumexp over the complement keeps the tail."""
    draw = torch.Generator().manual_seed(2)
    zs, zt = (torch.randn(20, 50, generator=draw) for _ in range(2))
    zs[:, 0], zt[:, 0] = 30.0, 28.0
    results = []
    for dtype in (torch.float32, torch.float64):
        answer = Answer.of_logits(zt.to(dtype), 4)
        config = BY_NAME[plugin].config.model_validate({})
        term = Term.of(BY_NAME[plugin], config, LossContext(50, None, 50))
        hidden = zs.to(dtype).clone().requires_grad_()
        batch = SignalBatch(torch.zeros(20, dtype=torch.int64), {"top_k": answer})
        head = Head(torch.eye(50, dtype=dtype))
        out = head_loss(hidden, head, batch, [term], {plugin: Values(knobs={"teacher_weight": 0.5})})
        out.loss.backward()
        assert hidden.grad is not None
        results.append((out.loss.detach().double(), hidden.grad.double()))
    tail = Answer.of_logits(zt, 4).at[1.0][1]
    assert (1 - Answer.of_logits(zt, 4).at[1.0][0].exp().sum(1) <= 0).any()  # what must not be used
    assert tail.isfinite().all()
    torch.testing.assert_close(results[0][1][:, 1:], results[1][1][:, 1:], rtol=1e-3, atol=1e-16)
