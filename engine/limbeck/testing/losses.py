"""Conformance of losses: subclass the class of your loss's kind in a test file, and pytest runs the suite.

    class TestMyLoss(TokenLossConformance):
        plugin = limbeck_mine.PLUGIN
        configs = ({}, {"sharpness": 2.0})

Needs torch. Everything is checked in float64 on small random inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.functional.bare import knobs_of
from limbeck.functional.batch import Answer, SignalBatch
from limbeck.functional.head import Head
from limbeck.functional.loss import head_loss
from limbeck.functional.terms import Term, Values
from limbeck.interfaces import Loss, LossConfig, LossContext, LossPlugin, Needs, SequenceBatch, Support

CONTEXT = LossContext(student_hidden_size=6, teacher_hidden_size=10, vocab_size=17)
_N, _K = 12, 5
_STEP = 1e-5  # of the central differences


class _Conformance:
    """What every kind shares."""

    plugin: ClassVar[LossPlugin]
    configs: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    kind: ClassVar[str]

    def test_is_of_its_kind(self) -> None:
        assert self.plugin.kind == self.kind

    def test_config_is_a_loss_config_whose_fields_are_described(self) -> None:
        assert issubclass(self.plugin.config, LossConfig)
        bare = [name for name, field in self.plugin.config.model_fields.items() if not field.description]
        assert not bare, f"fields without a description: {bare}"

    def test_an_unknown_option_is_refused(self) -> None:
        from pydantic import ValidationError

        try:
            self.plugin.config.model_validate({**self.configs[0], "no_such_option": 1})
        except ValidationError:
            return
        raise AssertionError("an unknown option was accepted")

    def test_the_built_loss_needs_what_the_plugin_says(self) -> None:
        for _, needs, loss, _ in self._built():
            assert loss.needs == needs or loss.needs.primitive == needs.primitive

    def _built(self) -> Iterator[tuple[LossConfig, Needs, Any, dict[str, float]]]:
        for options in self.configs:
            config = self.plugin.config.model_validate(dict(options))
            loss: Loss = self.plugin.factory(config, CONTEXT)
            if isinstance(loss, nn.Module):
                loss = loss.double()
            values = Values.of(knobs_of(config))
            yield config, self.plugin.needs(config), loss, dict(values.knobs)


class TokenLossConformance(_Conformance):
    """One value per token, differentiable in the student, finite where a probability is 0 on both sides."""

    kind = "token"

    def test_gives_one_value_per_token_and_leaves_its_inputs_alone(self) -> None:
        for _, needs, loss, knobs in self._built():
            student, teacher = _supports(needs, seed=0)
            copies = [x.clone() for x in (student.on_support, student.tail, teacher.on_support, teacher.tail)]
            value = loss(student, teacher, knobs)
            assert value.shape == (_N,)
            assert value.isfinite().all()
            after = (student.on_support, student.tail, teacher.on_support, teacher.tail)
            assert all(torch.equal(a, b) for a, b in zip(copies, after, strict=True))

    def test_a_token_does_not_depend_on_the_others(self) -> None:
        for _, needs, loss, knobs in self._built():
            student, teacher = _supports(needs, seed=1)
            every = loss(student, teacher, knobs)
            some = loss(_rows(student, slice(3, 7)), _rows(teacher, slice(3, 7)), knobs)
            torch.testing.assert_close(every[3:7], some, rtol=1e-12, atol=1e-12)

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        for _, needs, loss, knobs in self._built():
            student, teacher = _supports(needs, seed=2)

            def total(
                on_support: Tensor, tail: Tensor, loss: Any = loss, teacher: Support = teacher, knobs: Any = knobs
            ) -> Tensor:
                return torch.as_tensor(loss(Support(on_support, tail), teacher, knobs).sum())

            _check_gradient(total, [student.on_support, student.tail])

    def test_an_outcome_impossible_for_both_adds_nothing(self) -> None:
        for _, needs, loss, knobs in self._built():
            if needs.primitive == "none":
                continue
            student, teacher = _supports(needs, seed=3)
            wider = [_with_impossible(side) for side in (student, teacher)]
            leaf = wider[0].on_support.requires_grad_()
            value = loss(Support(leaf, wider[0].tail), wider[1], knobs)
            torch.testing.assert_close(value, loss(student, teacher, knobs), rtol=1e-10, atol=1e-12)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
            assert grad.isfinite().all()
            assert (grad[:, -1] == 0).all()

    def test_is_the_same_whatever_the_chunks_and_however_the_batch_is_cut(self) -> None:
        for config, needs, loss, knobs in self._built():
            if needs.primitive not in ("none", "top_k", "full"):
                continue
            term = Term("loss", "token", loss, needs, getattr(config, "tail", "bucket"), getattr(config, "top_k", None))
            values = {"loss": Values(knobs=knobs)}
            _check_chunks(term, values)


class SequenceLossConformance(_Conformance):
    """One value per row or pair, from the log-probabilities of whole rows."""

    kind = "sequence"

    def test_gives_one_value_per_row_or_pair(self) -> None:
        for _, needs, loss, knobs in self._built():
            batch = _sequences(seed=0)
            value = loss(batch, knobs)
            assert value.shape == ((2,) if needs.normaliser == "pairs" else (4,))
            assert value.isfinite().all()

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        for _, _, loss, knobs in self._built():
            batch = _sequences(seed=1)
            order = torch.tensor([2, 3, 1, 0])
            torch.testing.assert_close(loss(batch, knobs).sum(), loss(_reordered(batch, order), knobs).sum())

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        for _, _, loss, knobs in self._built():
            batch = _sequences(seed=2)

            def total(student: Tensor, loss: Any = loss, batch: SequenceBatch = batch, knobs: Any = knobs) -> Tensor:
                logprobs = {**batch.logprobs, "student": student}
                rows = SequenceBatch(logprobs, batch.row_n, batch.offsets_n2, batch.pair_r, batch.chosen_r)
                return torch.as_tensor(loss(rows, knobs).sum())

            _check_gradient(total, [batch.logprobs["student"]])


class FeatureLossConformance(_Conformance):
    """One value per token from hidden states; own parameters are trained."""

    kind = "feature"

    def test_gives_one_value_per_token(self) -> None:
        for _, needs, loss, knobs in self._built():
            value = loss(*_features(needs, seed=0), knobs)
            assert value.shape == (_N,)
            assert value.isfinite().all()
            assert loss(*_features(needs, seed=0, n=0), knobs).shape == (0,)

    def test_a_token_does_not_depend_on_the_others(self) -> None:
        for _, needs, loss, knobs in self._built():
            student, teacher = _features(needs, seed=1)
            some = loss({k: x[3:7] for k, x in student.items()}, {k: x[3:7] for k, x in teacher.items()}, knobs)
            torch.testing.assert_close(loss(student, teacher, knobs)[3:7], some, rtol=1e-12, atol=1e-12)

    def test_the_gradient_is_that_of_finite_differences_in_states_and_parameters(self) -> None:
        for _, needs, loss, knobs in self._built():
            student, teacher = _features(needs, seed=2)
            layers = list(student)

            def total(*states: Tensor, loss: Any = loss, teacher: Any = teacher, knobs: Any = knobs) -> Tensor:
                return torch.as_tensor(loss(dict(zip(layers, states, strict=True)), teacher, knobs).sum())  # noqa: B023

            _check_gradient(total, [student[layer] for layer in layers])
            parameters = list(loss.parameters()) if isinstance(loss, nn.Module) else []
            if parameters:
                grads = torch.autograd.grad(total(*student.values()), parameters)
                assert all(grad.isfinite().all() and grad.any() for grad in grads)


# --------------------------------------------------------------------------------------------------------- inputs


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _supports(needs: Needs, seed: int) -> tuple[Support, Support]:
    """Two random sides: the primitive's support of k ids and the rest of a vocabulary of k + 1 outcomes."""
    draw = _generator(seed)
    k = 1 if needs.primitive == "none" else _K
    sides = [torch.log_softmax(torch.randn(_N, k + 1, generator=draw, dtype=torch.float64), 1) for _ in range(2)]
    student, teacher = (Support(x[:, :-1].contiguous(), x[:, -1].contiguous()) for x in sides)
    if needs.primitive == "none":
        teacher = Support(torch.zeros_like(teacher.on_support), torch.full_like(teacher.tail, -torch.inf))
    if needs.primitive == "samples":
        counts = torch.randint(1, 4, (_N, k), generator=draw).double()
        teacher = Support(teacher.on_support, torch.full_like(teacher.tail, -torch.inf), counts)
    return student, teacher


def _rows(side: Support, rows: slice) -> Support:
    return Support(side.on_support[rows], side.tail[rows], None if side.counts is None else side.counts[rows])


def _with_impossible(side: Support) -> Support:
    never = torch.full_like(side.tail, -torch.inf)[:, None]
    counts = None if side.counts is None else torch.cat([side.counts, torch.zeros_like(never)], 1)
    return Support(torch.cat([side.on_support, never], 1), side.tail, counts)


def _sequences(seed: int) -> SequenceBatch:
    """Four rows of 3, 1, 4 and 2 tokens: two pairs, the second one's rejected row first."""
    draw = _generator(seed)
    row_n = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])
    logprobs = {who: -torch.rand(10, generator=draw, dtype=torch.float64) * 4 for who in ("student", "teacher")}
    starts = torch.arange(10)
    offsets = torch.stack([starts, starts + 1], 1)
    return SequenceBatch(logprobs, row_n, offsets, torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, True]))


def _reordered(batch: SequenceBatch, order: Tensor) -> SequenceBatch:
    """Rows `order` of the batch, in that order."""
    tokens = torch.cat([(batch.row_n == row).nonzero()[:, 0] for row in order.tolist()])
    place = torch.argsort(order)
    logprobs = {who: x[tokens] for who, x in batch.logprobs.items()}
    return SequenceBatch(
        logprobs, place[batch.row_n[tokens]], batch.offsets_n2[tokens], batch.pair_r[order], batch.chosen_r[order]
    )


def _features(needs: Needs, seed: int, n: int = _N) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    draw = _generator(seed)
    student, teacher = (
        {layer: torch.randn(n, size, generator=draw, dtype=torch.float64) for layer in layers}
        for layers, size in (
            (needs.student_layers, CONTEXT.student_hidden_size),
            (needs.teacher_layers, CONTEXT.teacher_hidden_size or 0),
        )
    )
    return student, teacher


def _check_gradient(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Compare autograd's gradient with central differences, entry by entry."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    grads = torch.autograd.grad(function(*leaves), leaves, allow_unused=True)
    for place, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        for entry in range(x.numel()):
            sides = []
            for sign in (1, -1):
                moved = [y.clone() for y in inputs]
                moved[place].view(-1)[entry] += sign * _STEP
                with torch.no_grad():
                    sides.append(float(function(*moved)))
            expected = (sides[0] - sides[1]) / (2 * _STEP)
            found = 0.0 if grad is None else float(grad.reshape(-1)[entry])
            assert abs(found - expected) <= 1e-6 * max(1.0, abs(expected)), (
                f"gradient {found}, finite differences {expected} (input {place}, entry {entry})"
            )


def _check_chunks(term: Term, values: Mapping[str, Values]) -> None:
    """Loss and gradients through the head: one chunk, a token a chunk, and two halves accumulated."""
    draw = _generator(4)
    hidden = torch.randn(_N, CONTEXT.student_hidden_size, generator=draw, dtype=torch.float64)
    weight = torch.randn(CONTEXT.vocab_size, CONTEXT.student_hidden_size, generator=draw, dtype=torch.float64)
    teacher = torch.log_softmax(torch.randn(_N, CONTEXT.vocab_size, generator=draw, dtype=torch.float64), 1)
    labels = torch.randint(0, CONTEXT.vocab_size, (_N,), generator=draw)
    wanted = term.needs.primitive

    def batch(rows: slice) -> SignalBatch:
        answers = {"top_k": Answer.of_logits(teacher[rows], 7)} if wanted == "top_k" else {}
        return SignalBatch(labels[rows], answers, full=teacher[rows] if wanted == "full" else None)

    def gradients(parts: Sequence[slice], chunk_bytes: int) -> list[Tensor]:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        total = torch.zeros((), dtype=torch.float64)
        for rows in parts:
            counts = {"tokens": _N, "rows": 1, "pairs": 1}
            output = head_loss(
                leaves[0][rows], Head(leaves[1]), batch(rows), [term], values, counts, chunk_bytes=chunk_bytes
            )
            output.loss.backward()  # type: ignore[no-untyped-call]
            total += output.loss.detach()
        return [total, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    whole = gradients([slice(0, _N)], 2**20)
    for other in (gradients([slice(0, _N)], 1), gradients([slice(0, 5), slice(5, _N)], 2**20)):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
