"""Losses at the head: Σ weight · loss / N and its gradients in one pass over chunks of tokens.

[n, v] logits never exist. A pass projects one chunk, reduces its softmax to the ids that the losses look at
(`softmax.py`), runs autograd on that small part, and turns its gradient into those of the hidden states and of the
head's parameters at once. Terms at one temperature share all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.functional.batch import SignalBatch
from limbeck.functional.features import feature_values
from limbeck.functional.head import Head
from limbeck.functional.output import LossOutput
from limbeck.functional.projection import CHUNK_BYTES, Projection, compute_dtype
from limbeck.functional.sequences import sequence_gradients
from limbeck.functional.softmax import Reduced, Whole
from limbeck.functional.terms import Source, Term, Values, source, taken, with_tail
from limbeck.interfaces import Support

_COMPARING = ("top_k", "full", "hidden_states")  # primitives of losses that compare distributions


def head_loss(
    hidden: Tensor,
    head: Head,
    batch: SignalBatch,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    denominators: Mapping[str, float] | None = None,
    *,
    features: Mapping[int, Tensor] | None = None,
    teacher_head: Head | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossOutput:
    """The weighted sum of `terms` over the kept tokens, differentiable in `hidden`, head and loss parameters.

    `hidden` [n, d]: the student's last hidden states of the kept tokens only (:meth:`SignalBatch.select`). `values`:
    term name to its knobs in force. `denominators`: the *global* counts of `tokens`, `rows` and `pairs`, over
    accumulation and processes; this batch's own where left out. `features`: the student's layer to [n, d'], for
    feature losses. `teacher_head`: for a teacher that gives its last hidden states.

    A token's losses are multiplied by its weight (`batch.weights_n`). Tokens of weight 0, and for a term on a signal
    those that the teacher said nothing of, add exactly 0 to values and gradients, and the loss never sees them; the
    denominators stay as they are.

    Without gradients (`torch.no_grad`) none are computed. With nothing kept the loss is a differentiable 0. Raises
    CAPABILITY_MISSING where the batch lacks a signal that a term needs.
    """
    counts = batch.counts if denominators is None else denominators
    factors = {term.name: _factor(term, values[term.name], counts) for term in terms}
    result = _head_terms(hidden, head, batch, terms, values, factors, teacher_head, chunk_bytes)
    rows = _weighing(batch, slice(None))
    for term in (term for term in terms if term.kind == "feature"):
        value_n = feature_values(term, values[term.name], features or {}, batch, rows)
        total = _weighted(value_n, batch, slice(None), rows).sum()
        result.loss = result.loss + factors[term.name] * total
        result.sums[term.name] = total.detach() * _squared(term, values[term.name])
        result.not_finite[term.name] = _marked(value_n, batch.labels, rows)
    return LossOutput(result.loss, result.sums, result.diagnostics, result.not_finite)


def _squared(term: Term, values: Values) -> float:
    return values.temperature**2 if term.temperature_squared else 1.0


def _factor(term: Term, values: Values, counts: Mapping[str, float]) -> float:
    """What a term's plain sum is multiplied by. Nothing kept anywhere has the sum 0, whatever the divisor."""
    return values.weight * _squared(term, values) / (float(counts[term.needs.normaliser]) or 1.0)


def _weighing(batch: SignalBatch, rows: slice, said: Tensor | None = None) -> Tensor | None:
    """Places in a chunk of the tokens that a term looks at: those `said` [c] marks, of weight above 0; None for all."""
    if batch.weights_n is not None:
        weighs = batch.weights_n[rows] > 0
        said = weighs if said is None else said & weighs
    return None if said is None or bool(said.all()) else said.nonzero()[:, 0]


def _weighted(value_m: Tensor, batch: SignalBatch, rows: slice, places: Tensor | None) -> Tensor:
    """The values [m] of the tokens at `places` of a chunk, times their weights."""
    if batch.weights_n is None:
        return value_m
    weights = batch.weights_n[rows]
    return value_m * (weights if places is None else weights[places]).to(value_m.dtype)


def _marked(value_m: Tensor, labels: Tensor, places: Tensor | None) -> Tensor:
    """Which of the tokens of a chunk have a value that is not finite [c]."""
    bad = ~value_m.detach().isfinite()
    if places is None:
        return bad
    marks = torch.zeros_like(labels, dtype=torch.bool)
    marks[places] = bad
    return marks


@dataclass
class Result:
    """What one call adds up."""

    loss: Tensor
    sums: dict[str, Tensor]
    diagnostics: dict[str, Tensor]
    not_finite: dict[str, Tensor]


@dataclass
class _Group:
    """The token terms at one temperature, and what sequence losses ask: a gradient of the labels' log-probabilities."""

    temperature: float
    terms: list[tuple[Term, Source]]
    label_gradient: Tensor | None = None

    @property
    def whole(self) -> bool:
        return any(side.answer is None for _, side in self.terms)


def _head_terms(
    hidden: Tensor,
    head: Head,
    batch: SignalBatch,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    factors: Mapping[str, float],
    teacher_head: Head | None,
    chunk_bytes: int,
) -> Result:
    token_terms = [term for term in terms if term.kind == "token"]
    sequence_terms = [term for term in terms if term.kind == "sequence"]
    parameters = [parameter for term in (*token_terms, *sequence_terms) for parameter in term.parameters]
    inputs = [hidden, *head.parameters, *parameters]
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in inputs]
    groups = _groups(token_terms, values, batch, head.vocab_size, teacher_head)
    label_group = _group_at(groups, 1.0) if sequence_terms and any(wanted) else None
    want_head = (wanted[0], wanted[1], head.bias is not None and wanted[2])
    buffers = 1 + (len(groups) > 1) + 4 * any(group.whole for group in groups)

    compute = compute_dtype(hidden, head)  # asked before autocast is off
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        projection = Projection(hidden, head, want_head, chunk_bytes, buffers, compute)
        zero = hidden.new_zeros((), dtype=projection.dtype)
        result = Result(
            loss=zero.clone(),
            sums={term.name: zero.clone() for term in terms},
            diagnostics={"tokens": zero + batch.n, "saturated": zero + batch.saturated},
            not_finite={term.name: torch.zeros_like(batch.labels, dtype=torch.bool) for term in terms},
        )
        parameter_grads = [torch.zeros_like(parameter, dtype=projection.dtype) for parameter in parameters]
        if sequence_terms:
            label_gradient = sequence_gradients(
                projection, batch, sequence_terms, values, factors, result, parameters, parameter_grads, any(wanted)
            )
            if label_group is not None:
                label_group.label_gradient = label_gradient
        diagnosed = next((term for term in token_terms if term.needs.primitive in _COMPARING), None)
        work = _Work(batch, values, factors, result, parameters, parameter_grads, any(wanted), diagnosed)
        if groups:
            for rows in projection.chunks():
                gradient = work.chunk(projection.logits(rows), rows, groups)
                if gradient is not None:
                    projection.backward(rows, gradient)

    if any(wanted):
        grads = [projection.hidden_grad, projection.weight_grad]
        grads += [projection.bias_grad] if head.bias is not None else []
        grads += parameter_grads
        result.loss = _WithGradients.apply(result.loss, grads, *inputs)  # type: ignore[no-untyped-call]
    return result


def _groups(
    terms: Iterable[Term],
    values: Mapping[str, Values],
    batch: SignalBatch,
    vocab_size: int,
    teacher_head: Head | None,
) -> list[_Group]:
    groups: list[_Group] = []
    for term in terms:
        temperature = values[term.name].temperature
        side = source(term, temperature, batch, vocab_size, teacher_head)
        _group_at(groups, temperature).terms.append((term, side))
    return groups


def _group_at(groups: list[_Group], temperature: float) -> _Group:
    for group in groups:
        if group.temperature == temperature:
            return group
    groups.append(_Group(temperature, []))
    return groups[-1]


@dataclass
class _Work:
    """One pass over the chunks: adds up losses, figures and the gradients of loss parameters."""

    batch: SignalBatch
    values: Mapping[str, Values]
    factors: Mapping[str, float]
    result: Result
    parameters: Sequence[Tensor]
    parameter_grads: Sequence[Tensor]
    track: bool
    diagnosed: Term | None  # the first that compares distributions

    def chunk(self, logits: Tensor, rows: slice, groups: Sequence[_Group]) -> Tensor | None:
        """∂L/∂logits [c, v] of one chunk, in the memory of `logits` where it can; None where none is wanted."""
        gradient: Tensor | None = None
        for number, group in enumerate(groups, 1):
            z = logits if number == len(groups) else logits.clone()
            if group.temperature != 1.0:
                z.div_(group.temperature)
            with torch.set_grad_enabled(self.track):
                softmax = Whole(z) if group.whole else Reduced(z, self._all_ids(group, rows))
                total = self._total(softmax, group, rows)
            if not self.track or not total.requires_grad:  # no token of the chunk is one that a term looks at
                continue
            leaf_grad, *own = torch.autograd.grad(total, [softmax.leaf, *self.parameters], allow_unused=True)
            for accumulated, grad in zip(self.parameter_grads, own, strict=True):
                if grad is not None:
                    accumulated += grad
            part = softmax.gradient(leaf_grad.div_(group.temperature))
            gradient = part if gradient is None else gradient.add_(part)
        return gradient

    def _all_ids(self, group: _Group, rows: slice) -> Tensor:
        ids = [side.ids(rows)[0] for _, side in group.terms]
        if group.label_gradient is not None:
            ids.append(self.batch.labels[rows, None])
        return torch.cat(ids, dim=1)

    def _total(self, softmax: Reduced | Whole, group: _Group, rows: slice) -> Tensor:
        """The chunk's part of the loss, differentiable in the softmax's leaf."""
        total = softmax.leaf.new_zeros(())
        for term, side in group.terms:
            places = _weighing(self.batch, rows, side.said(rows))
            if places is not None and not len(places):
                continue
            teacher = side.teacher(rows, group.temperature, softmax.leaf.dtype)
            if side.answer is not None:
                student = softmax.support(*side.ids(rows))
            else:
                assert isinstance(softmax, Whole)
                student = softmax.shared(side.vocab_size)
            if places is not None:
                student, teacher = taken(student, places), taken(teacher, places)
            if term is self.diagnosed:
                self._diagnose(term, softmax, side, rows, places, student, teacher)
            sides = with_tail(student, term.tail), with_tail(teacher, term.tail)
            value_m = term.ask(len(teacher.tail), *sides, self.values[term.name].knobs)
            part = _weighted(value_m, self.batch, rows, places).sum()
            total = total + self.factors[term.name] * part
            self.result.sums[term.name] += _squared(term, self.values[term.name]) * part.detach()
            self.result.loss += self.factors[term.name] * part.detach()
            self.result.not_finite[term.name][rows] = _marked(value_m, self.batch.labels[rows], places)
        if group.label_gradient is not None:
            labels = self.batch.labels[rows, None]
            logprobs = softmax.support(labels, torch.ones_like(labels, dtype=torch.bool)).on_support[:, 0]
            total = total + (group.label_gradient[rows] * logprobs).sum()
        return total

    def _diagnose(
        self,
        term: Term,
        softmax: Reduced | Whole,
        side: Source,
        rows: slice,
        places: Tensor | None,
        student: Support,
        teacher: Support,
    ) -> None:
        with torch.no_grad():
            top = side.top(rows, self.values[term.name].temperature, teacher.on_support.dtype)
            agrees = (top >= 0) & softmax.is_top(top.clamp(min=0))
            figures = {
                "teacher_mass": teacher.on_support.exp().sum(),
                "student_mass": student.on_support.detach().exp().sum(),
                "top1_agreement": (agrees if places is None else agrees[places]).sum(),
                "compared": student.tail.new_full((), len(student.tail)),
            }
        for name, figure in figures.items():
            self.result.diagnostics[name] = self.result.diagnostics.get(name, 0.0) + figure


class _WithGradients(torch.autograd.Function):
    """The loss, with gradients that are known already: backward gives each times the incoming one, in place.

    It never writes ``.grad``: hooks of DDP, FSDP's reduce-scatter and tied weights see an ordinary gradient.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.grads, ctx.dtypes = grads, [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of a head loss can be taken once: compute the loss again")
        grads, ctx.grads = ctx.grads, None
        wanted = ctx.needs_input_grad[2:]
        scaled = (
            grad.mul_(incoming).to(dtype) if want and grad is not None else None
            for grad, dtype, want in zip(grads, ctx.dtypes, wanted, strict=True)
        )
        return (None, None, *scaled)
