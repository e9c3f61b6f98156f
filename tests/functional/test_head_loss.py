"""The head's loss against plain formulas over full logits, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Reason, told
from limbeck.functional import Answer, Head, SignalBatch, Term, Values, head_loss
from limbeck.functional.output import check_finite

N, D, V, K = 9, 6, 17, 4
LOSSES = [
    ("cross_entropy", {}),
    ("sequence_kd", {}),
    *(
        (name, {"tail": tail, **more})
        for name, more in (("forward_kl", {}), ("reverse_kl", {}), ("jsd", {}), ("jsd", {"teacher_weight": 0.2}))
        for tail in ("bucket", "renormalise", "drop")
    ),
]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "soft-capped": {"soft_cap": 2.0},
    "all": {"bias": True, "scale": 1.7, "soft_cap": 3.0},
}
MASKS = {"all": list(range(N)), "some": [1, 2, 5, 8], "one": [4]}
ONE_TOKEN, TWO_TOKENS, ALL_TOKENS = 1, 2 * V * 8, 2**24  # chunk_bytes

Made = tuple[Term, Values]


class Case:
    """Random hidden states, a head, a teacher's logits and labels, drawn from a seed."""

    def __init__(self, head: str = "plain", seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        options = dict(HEADS[head])
        self.hidden = normal(N, D).requires_grad_()
        self.weight = normal(V, D).requires_grad_()
        self.bias = normal(V).requires_grad_() if options.pop("bias", False) else None
        self.head = Head(self.weight, self.bias, **options)
        self.teacher = 2 * normal(N, V)
        self.labels = torch.randint(0, V, (N,), generator=draw)
        self.ids = self.teacher.topk(K, dim=1).indices

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]

    def batch(self, rows: Any = slice(None), temperatures: tuple[float, ...] = (1.0,), k: int = K) -> SignalBatch:
        return SignalBatch(self.labels[rows], {"top_k": Answer.of_logits(self.teacher[rows], k, temperatures)})

    def logits(self) -> Tensor:
        """The head's formula, written out."""
        z = self.hidden @ self.weight.T
        z = z if self.bias is None else z + self.bias
        z = z * self.head.scale
        return z if self.head.soft_cap is None else self.head.soft_cap * torch.tanh(z / self.head.soft_cap)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [grad.clone() for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "options"), LOSSES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in LOSSES])
def test_equals_the_formula_at_every_temperature_mask_and_chunk_size(
    make: Callable[..., Made], formula: Callable[..., Tensor], name: str, options: dict[str, Any]
) -> None:
    temperatures = (0.5, 1.0, 2.0) if "tail" in options else (1.0,)
    for head, temperature, mask in itertools.product(HEADS, temperatures, MASKS.values()):
        case = Case(head)
        full = {**options, **({"temperature": temperature} if "tail" in options else {})}
        term, values = make(name, weight=0.7, **full)
        per_token = formula(name, case.logits(), case.teacher, case.ids, full, case.labels)
        expected = 0.7 * per_token[mask].sum() / 11
        expected_grads = gradients(expected, case.leaves)
        for chunk_bytes in (ONE_TOKEN, TWO_TOKENS, ALL_TOKENS):
            out = head_loss(
                case.hidden[mask], case.head, case.batch(mask, temperatures), [term], {term.name: values},
                {"tokens": 11, "rows": 1, "pairs": 1}, chunk_bytes=chunk_bytes,
            )  # fmt: skip
            found = gradients(out.loss, case.leaves)
            assert_same([out.loss.detach(), *found], [expected.detach(), *expected_grads])
            torch.testing.assert_close(out.sums[term.name], per_token[mask].sum().detach())
            assert not out.not_finite[term.name].any()


@pytest.mark.parametrize(("name", "options"), LOSSES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in LOSSES])
def test_the_gradient_is_that_of_finite_differences(
    make: Callable[..., Made], name: str, options: dict[str, Any]
) -> None:
    temperature = {"temperature": 2.0} if "tail" in options else {}
    term, values = make(name, **options, **temperature)
    case = Case("all")
    batch = case.batch(temperatures=(1.0, 2.0))

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = Head(weight, bias, case.head.scale, case.head.soft_cap)
        return head_loss(hidden, head, batch, [term], {term.name: values}, chunk_bytes=TWO_TOKENS).loss

    analytic = gradients(loss(*case.leaves), case.leaves)
    step = 1e-5
    draw = torch.Generator().manual_seed(1)
    for place, grad in enumerate(analytic):
        for entry in torch.randint(0, grad.numel(), (12,), generator=draw).tolist():
            sides = []
            for sign in (1, -1):
                moved = [leaf.detach().clone() for leaf in case.leaves]
                moved[place].view(-1)[entry] += sign * step
                sides.append(loss(*moved).item())
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(grad.reshape(-1)[entry].item(), abs=1e-6)


def test_terms_at_several_temperatures_with_several_supports_add_up(
    make: Callable[..., Made], formula: Callable[..., Tensor]
) -> None:
    asked = [
        ("forward_kl", {"name": "a", "temperature": 2.0, "weight": 0.5}, K),
        ("reverse_kl", {"name": "b", "temperature": 1.0, "top_k": 2, "tail": "renormalise"}, 2),
        ("jsd", {"name": "c", "temperature": 2.0, "top_k": 3, "temperature_squared": False, "teacher_weight": 0.9}, 3),
        ("cross_entropy", {"name": "d", "weight": 0.1}, K),
    ]
    case = Case("soft-capped")
    made = [make(name, **options) for name, options, _ in asked]
    values = {term.name: knobs for term, knobs in made}
    z = case.logits()
    terms = [
        options.get("weight", 1.0) * formula(name, z, case.teacher, case.ids[:, :k], options, case.labels).mean()
        for name, options, k in asked
    ]
    expected = torch.stack(terms).sum()
    for chunk_bytes in (ONE_TOKEN, 3 * TWO_TOKENS, ALL_TOKENS):
        batch = case.batch(temperatures=(1.0, 2.0))
        out = head_loss(case.hidden, case.head, batch, [term for term, _ in made], values, chunk_bytes=chunk_bytes)
        assert_same(
            [out.loss.detach(), *gradients(out.loss, case.leaves)],
            [expected.detach(), *gradients(expected, case.leaves)],
        )


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
def test_a_smaller_top_k_merges_the_rest_into_the_tail(make: Callable[..., Made], tail: str) -> None:
    case = Case()
    term, values = make("forward_kl", top_k=2, tail=tail)
    from_more = head_loss(case.hidden, case.head, case.batch(k=8), [term], {term.name: values})
    from_two = head_loss(case.hidden, case.head, case.batch(k=2), [term], {term.name: values})
    assert_same(
        [from_more.loss.detach(), *gradients(from_more.loss, case.leaves)],
        [from_two.loss.detach(), *gradients(from_two.loss, case.leaves)],
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "cross_entropy"])
def test_two_halves_accumulated_equal_the_whole(
    make: Callable[..., Made], name: str, dtype: torch.dtype, tolerance: float
) -> None:
    case = Case("bias", dtype=dtype)
    term, values = make(name)
    whole = head_loss(case.hidden, case.head, case.batch(), [term], {term.name: values})
    expected = gradients(whole.loss, case.leaves)
    loss = torch.zeros((), dtype=dtype)
    for rows in (slice(0, 2), slice(2, N)):
        part = head_loss(
            case.hidden[rows], case.head, case.batch(rows), [term], {term.name: values},
            {"tokens": N, "rows": 1, "pairs": 1},
        )  # fmt: skip
        part.loss.backward()
        loss += part.loss.detach()
    found = [leaf.grad for leaf in case.leaves if leaf.grad is not None]
    assert_same([loss, *found], [whole.loss.detach(), *expected], tolerance)


def test_a_full_signal_and_a_teachers_hidden_states_give_the_full_divergence(
    make: Callable[..., Made], formula: Callable[..., Tensor]
) -> None:
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(N, 10, generator=draw, dtype=torch.float64)
    teacher_head = Head(torch.randn(V, 10, generator=draw, dtype=torch.float64), soft_cap=4.0)
    for name, temperature in itertools.product(("forward_kl", "reverse_kl", "jsd"), (0.5, 1.0, 2.0)):
        case = Case("soft-capped")
        zt = teacher_head.logits(states)
        expected = formula(name, case.logits(), zt, None, {"temperature": temperature}, case.labels).mean()
        term, values = make(name, temperature=temperature)
        cross, own = make("cross_entropy", weight=0.0)
        for batch in (
            SignalBatch(case.labels, full=torch.log_softmax(zt, 1)),
            SignalBatch(case.labels, hidden={-1: states}),
        ):
            out = head_loss(
                case.hidden, case.head, batch, [term, cross], {name: values, "cross_entropy": own},
                teacher_head=teacher_head, chunk_bytes=TWO_TOKENS,
            )  # fmt: skip
            assert_same(
                [out.loss.detach(), *gradients(out.loss, case.leaves)],
                [expected.detach(), *gradients(expected, case.leaves)],
            )
            assert out.diagnostics["teacher_mass"].item() == pytest.approx(N)


@pytest.mark.parametrize("signal", ["top_k", "full"])
@pytest.mark.parametrize("more", ["teacher", "student"])
def test_ids_above_the_shared_vocabulary_are_in_the_tails(make: Callable[..., Made], signal: str, more: str) -> None:
    """Two vocabularies that differ by padding rows: each side's own extra ids are one bucket."""
    shared = V - 3
    case = Case()
    if more == "teacher":
        weight, zt = case.weight.detach()[:shared].clone().requires_grad_(), case.teacher
    else:
        weight, zt = case.weight, case.teacher[:, :shared]
    labels = case.labels.clamp(max=shared - 1)
    q, p = torch.softmax(case.hidden @ weight.T, 1), torch.softmax(zt, 1)
    if signal == "full":
        a = torch.cat([p[:, :shared], p[:, shared:].sum(1, keepdim=True)], 1)
        b = torch.cat([q[:, :shared], q[:, shared:].sum(1, keepdim=True)], 1)
        batch = SignalBatch(labels, full=p.log())
    else:
        ids = zt.topk(K, 1).indices
        keep = torch.zeros_like(p).scatter(1, ids, 1.0)[:, :shared]
        a = torch.cat([p[:, :shared] * keep, 1 - (p[:, :shared] * keep).sum(1, keepdim=True)], 1)
        b = torch.cat([q[:, :shared] * keep, 1 - (q[:, :shared] * keep).sum(1, keepdim=True)], 1)
        batch = SignalBatch(labels, {"top_k": Answer.of_logits(zt, K)})
        assert more == "student" or (ids >= shared).any()
    for name in ("forward_kl", "jsd"):
        m = (a + b) / 2
        pairs = [(a, b, 1.0)] if name == "forward_kl" else [(a, m, 0.5), (b, m, 0.5)]
        safe = [(x.clamp(min=1e-300), y.clamp(min=1e-300), w) for x, y, w in pairs]
        expected = torch.stack([w * (x * (x / y).log()).sum() for x, y, w in safe]).sum() / N
        term, values = make(name)
        out = head_loss(case.hidden, Head(weight), batch, [term], {name: values})
        if (signal, more, name) == ("full", "teacher", "forward_kl"):  # mass on what the student cannot say
            assert out.not_finite[name].all()
            with pytest.raises(LimbeckError, match="renormalise"):
                out.check(batch)
            continue
        assert_same(
            [out.loss.detach(), *gradients(out.loss, [case.hidden, weight])],
            [expected.detach(), *gradients(expected, [case.hidden, weight])],
        )


def test_reverse_kl_of_an_impossible_token_names_its_row(make: Callable[..., Made]) -> None:
    case = Case()
    never = case.teacher.clone()
    never[4, 5:] = -torch.inf  # the teacher excludes 12 ids at token 4
    batch = SignalBatch(
        case.labels,
        full=torch.log_softmax(never, 1),
        batch_n=torch.tensor([0] * 4 + [1] * 5),
        time_n=torch.arange(N),
        row_n=torch.tensor([0] * 4 + [1] * 5),
        places=(("rows.jsonl", 3), ("rows.jsonl", 7)),
    )
    term, values = make("reverse_kl")
    out = head_loss(case.hidden, case.head, batch, [term], {"reverse_kl": values})
    with pytest.raises(LimbeckError) as caught:
        out.check(batch)
    assert caught.value.reason == Reason.LOSS_NOT_FINITE
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.field) == ("rows.jsonl", 7, "losses.reverse_kl")
    assert "positions 4" in problem.message
    forward, knobs = make("forward_kl")  # p = 0 adds nothing to forward KL
    out = head_loss(case.hidden, case.head, batch, [forward], {"forward_kl": knobs})
    out.check(batch)
    assert all(grad.isfinite().all() for grad in gradients(out.loss, case.leaves))


def test_a_student_that_is_lost_is_told_of_once_not_for_each_loss_and_row() -> None:
    batch = SignalBatch(
        torch.zeros(6, dtype=torch.int64),
        batch_n=torch.tensor([0, 0, 1, 1, 2, 2]),
        time_n=torch.tensor([4, 5] * 3),
        row_n=torch.tensor([0, 0, 1, 1, 2, 2]),
        places=(("rows.jsonl", 3), ("rows.jsonl", 7), ("rows.jsonl", 7)),
    )

    def problems(**marks: list[int]) -> list[tuple[Any, ...]]:
        with pytest.raises(LimbeckError) as caught:
            check_finite({name: torch.tensor(bad).bool() for name, bad in marks.items()}, batch)
        return [(one.line, one.field, one.message) for one in caught.value.problems]

    every, last = [1] * 6, [0, 0, 1, 1, 1, 1]
    assert problems(a=every, b=[0] * 6, c=every) == [
        (None, "losses.a", "a, c: not finite at any of the 6 tokens of 3 rows")
    ]
    assert problems(a=every, b=last) == [
        (None, "losses.a", "not finite at any of the 6 tokens of 3 rows"),
        (7, "losses.b", "not finite at 2 tokens, predicted at positions 4, 5"),
    ]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e10])
def test_positions_that_are_not_kept_change_nothing(make: Callable[..., Made], garbage: float) -> None:
    case = Case()
    made = [make("forward_kl"), make("cross_entropy")]
    terms, values = [term for term, _ in made], {term.name: knobs for term, knobs in made}
    labels = torch.full((2, 8), -100)
    labels[0, 2:6], labels[1, 1:6] = case.labels[:4], case.labels[4:]
    states = torch.full((2, 8, D), garbage, dtype=torch.float64)
    batch = SignalBatch.of_labels(labels, answers=case.batch().answers)
    assert batch.batch_n is not None
    states[batch.batch_n, batch.time_n] = case.hidden.detach()
    states.requires_grad_()
    out = head_loss(batch.select(states), case.head, batch, terms, values)
    expected = head_loss(case.hidden, case.head, case.batch(), terms, values)
    grad, weight_grad = torch.autograd.grad(out.loss, [states, case.weight])
    expected_grads = torch.autograd.grad(expected.loss, [case.hidden, case.weight])
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(weight_grad, expected_grads[1])
    assert torch.equal(grad[batch.batch_n, batch.time_n], expected_grads[0])
    grad[batch.batch_n, batch.time_n] = 0
    assert (grad == 0).all()


def test_nothing_kept_is_a_differentiable_0(make: Callable[..., Made]) -> None:
    case = Case("bias")
    made = [make("forward_kl", temperature=2.0), make("cross_entropy"), make("hidden_mse", layers=[[1, 1]])]
    made[2][0].loss.double()  # type: ignore[union-attr]
    terms, values = [term for term, _ in made], {term.name: knobs for term, knobs in made}
    none = slice(0, 0)
    batch = SignalBatch(
        case.labels[none], case.batch(none, (2.0,)).answers, hidden={1: torch.zeros(0, 10, dtype=torch.float64)}
    )
    out = head_loss(case.hidden[none], case.head, batch, terms, values, features={1: case.hidden[none]})
    out.loss.backward()
    out.check(batch)
    assert out.loss.item() == 0
    assert out.diagnostics["tokens"].item() == 0
    parameters = [*case.leaves, *made[2][0].parameters]
    assert len(parameters) == 4
    assert all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in parameters)


def test_a_frozen_head_gets_no_gradient_and_none_is_computed(make: Callable[..., Made]) -> None:
    term, values = make("forward_kl")
    trained, frozen = Case("bias"), Case("bias")
    frozen.weight.requires_grad_(False)
    assert frozen.bias is not None
    frozen.bias.requires_grad_(False)
    grads = []
    allocated: list[torch.Size] = []
    original = torch.zeros_like

    def counted(x: Tensor, **options: Any) -> Tensor:
        allocated.append(x.shape)
        return original(x, **options)

    for case in (trained, frozen):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "zeros_like", counted)
            allocated.clear()
            out = head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values})
        out.loss.backward()
        assert (torch.Size([V, D]) in allocated) == (case is trained)
        grads.append(case.hidden.grad)
    assert torch.equal(grads[0], grads[1])
    assert frozen.weight.grad is None


def test_evaluation_computes_no_gradients(make: Callable[..., Made]) -> None:
    case = Case()
    term, values = make("jsd")
    with torch.no_grad():
        out = head_loss(case.hidden, case.head, case.batch(), [term], {"jsd": values})
    assert not out.loss.requires_grad
    expected = head_loss(case.hidden, case.head, case.batch(), [term], {"jsd": values})
    assert torch.equal(out.loss, expected.loss.detach())


def test_the_gradient_is_scaled_by_what_comes_in_and_given_once(make: Callable[..., Made]) -> None:
    case = Case()
    term, values = make("forward_kl")

    def loss() -> Tensor:
        return head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values}).loss

    once = gradients(loss(), case.leaves)
    assert_same(gradients(-3 * loss(), case.leaves), [-3 * grad for grad in once])
    twice = loss()
    twice.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        twice.backward()


def test_diagnostics_are_sums_over_tokens(make: Callable[..., Made]) -> None:
    case = Case()
    cross, first, second = make("cross_entropy"), make("forward_kl", temperature=2.0), make("reverse_kl", top_k=1)
    terms = [cross[0], first[0], second[0]]
    values = {term.name: knobs for term, knobs in (cross, first, second)}
    q, p = torch.softmax(case.logits() / 2, 1).detach(), torch.softmax(case.teacher / 2, 1)
    for chunk_bytes in (ONE_TOKEN, ALL_TOKENS):
        batch = case.batch(temperatures=(1.0, 2.0))
        found = head_loss(case.hidden, case.head, batch, terms, values, chunk_bytes=chunk_bytes).diagnostics
        assert found["tokens"].item() == N
        assert found["teacher_mass"].item() == pytest.approx(p.gather(1, case.ids).sum().item())
        assert found["student_mass"].item() == pytest.approx(q.gather(1, case.ids).sum().item())
        assert found["top1_agreement"].item() == (q.argmax(1) == p.argmax(1)).sum().item()
    agreeing = SignalBatch(case.labels, {"top_k": Answer.of_logits(case.logits().detach(), 2)})
    found = head_loss(case.hidden, case.head, agreeing, [second[0]], values).diagnostics
    assert found["top1_agreement"].item() == N


@pytest.mark.parametrize("temperature", [3.0, 1.0])
def test_a_missing_signal_or_temperature_is_named(make: Callable[..., Made], temperature: float) -> None:
    case = Case()
    term, values = make("forward_kl", temperature=temperature)
    batch = case.batch() if temperature == 3.0 else SignalBatch(case.labels)
    with pytest.raises(LimbeckError) as caught:
        head_loss(case.hidden, case.head, batch, [term], {"forward_kl": values})
    assert caught.value.reason == Reason.CAPABILITY_MISSING
    assert ("temperature 3" if temperature == 3.0 else "top_k") in str(caught.value)


def test_bf16_weights_accumulate_in_fp32(make: Callable[..., Made]) -> None:
    wide, narrow = Case("soft-capped", dtype=torch.float32), Case("soft-capped", dtype=torch.bfloat16)
    term, values = make("forward_kl")
    results = []
    for case in (wide, narrow):
        batch: Any = wide.batch()
        out = head_loss(case.hidden, case.head, batch, [term], {"forward_kl": values}, chunk_bytes=ONE_TOKEN)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        assert case.weight.grad is not None
        assert case.weight.grad.dtype == case.weight.dtype
        results.append((out.loss.detach(), case.weight.grad.float()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.02, atol=0.02)
    assert torch.nn.functional.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), dim=0) > 0.999


def test_autocast_decides_what_the_products_run_in(make: Callable[..., Made]) -> None:
    case = Case(dtype=torch.float32)
    term, values = make("forward_kl")
    plain = head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values})
    assert cast.loss.dtype == torch.float32
    assert not torch.equal(cast.loss, plain.loss)
    torch.testing.assert_close(cast.loss, plain.loss, rtol=0.02, atol=0.02)
    assert gradients(cast.loss, case.leaves)[1].dtype == torch.float32


def test_a_token_loss_of_ten_lines_needs_nothing_else() -> None:
    from limbeck.interfaces import Needs, Support
    from limbeck.losses.numerics import outcomes

    class TotalVariation:
        needs = Needs("top_k")

        def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
            return 0.5 * (outcomes(student).exp() - outcomes(teacher).exp()).abs().sum(-1)

    case = Case("scale")
    term = Term("tv", "token", TotalVariation(), TotalVariation.needs)
    out = head_loss(case.hidden, case.head, case.batch(), [term], {"tv": Values()}, chunk_bytes=ONE_TOKEN)
    q, p = torch.softmax(case.logits(), 1), torch.softmax(case.teacher, 1)
    q_s, p_s = q.gather(1, case.ids), p.gather(1, case.ids)
    expected = 0.5 * ((q_s - p_s).abs().sum(1) + (q_s.sum(1) - p_s.sum(1)).abs()).mean()
    assert_same(
        [out.loss.detach(), *gradients(out.loss, case.leaves)],
        [expected.detach(), *gradients(expected, case.leaves)],
    )


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x, lambda x: x[1:, 0], lambda x: 0.0])
def test_a_loss_that_gives_another_shape_than_one_value_a_token_is_refused(
    wrong: Any, make: Callable[..., Made]
) -> None:
    case = Case()
    term, values = make("forward_kl")
    term = replace(term, loss=lambda student, teacher, knobs: wrong(student.on_support - teacher.on_support))
    with pytest.raises(LimbeckError) as caught:
        head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values})
    assert caught.value.reason is Reason.PLUGIN_INVALID
    assert caught.value.problems[0].field == "losses.forward_kl"
    assert "must give [9] values" in caught.value.problems[0].message


def test_what_a_loss_raises_tells_which_loss_it_was(make: Callable[..., Made]) -> None:
    case = Case()
    term, values = make("forward_kl")
    term = replace(term, loss=lambda student, teacher, knobs: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        head_loss(case.hidden, case.head, case.batch(), [term], {"forward_kl": values})
    assert told(caught.value).endswith("(in the loss forward_kl)")
