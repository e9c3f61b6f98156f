"""Sequence losses: their gradient with respect to the log-probabilities of the actual tokens.

A sequence loss needs all of a row before it gives a number, so it costs one more projection of each chunk: a first
pass gathers the tokens' log-probabilities [n], autograd runs on those, and the pass of the token losses carries
∂L/∂log q(label) on to the hidden states and the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.functional.batch import SignalBatch
from limbeck.functional.projection import Projection
from limbeck.functional.terms import Term, Values, no_signal
from limbeck.interfaces import SequenceBatch

if TYPE_CHECKING:
    from limbeck.functional.loss import Result


def sequence_gradients(
    projection: Projection,
    batch: SignalBatch,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    factors: Mapping[str, float],
    result: Result,
    parameters: Sequence[Tensor],
    parameter_grads: Sequence[Tensor],
    want: bool,
) -> Tensor:
    """∂L/∂log q(label) [n] of all sequence terms at temperature 1; zeros where no gradient is wanted.

    Adds the terms' sums, losses and marks to `result`, and the gradients of their own parameters to
    `parameter_grads`. Raises CAPABILITY_MISSING where the teacher's log-probabilities are not there, DATA_INVALID
    where a preference pair is not whole.
    """
    logprob_n = torch.cat(
        [torch.zeros_like(batch.labels[:0], dtype=projection.dtype), *_label_logprobs(projection, batch)]
    )
    total_gradient = torch.zeros_like(logprob_n)
    for term in terms:
        counted = "pairs" if term.needs.normaliser == "pairs" else "rows"
        with torch.set_grad_enabled(want):
            leaf = logprob_n.detach().requires_grad_(want)
            value = term.ask(int(batch.counts[counted]), _rows(term, leaf, batch), values[term.name].knobs)
            total = value.sum()
            weighted = factors[term.name] * total
        if want and weighted.requires_grad:
            leaf_grad, *own = torch.autograd.grad(weighted, [leaf, *parameters], allow_unused=True)
            if leaf_grad is not None:
                total_gradient += leaf_grad
            for accumulated, grad in zip(parameter_grads, own, strict=True):
                if grad is not None:
                    accumulated += grad
        result.sums[term.name] += total.detach()
        result.loss += weighted.detach()
        result.not_finite[term.name] = _marks(term, ~value.detach().isfinite(), batch)
    return total_gradient


def _label_logprobs(projection: Projection, batch: SignalBatch) -> list[Tensor]:
    """log q(label) at temperature 1 by chunks."""
    found = []
    for rows in projection.chunks():
        logits = projection.logits(rows)
        label = logits.gather(1, batch.labels[rows, None])[:, 0]
        found.append(label - torch.logsumexp(logits, dim=1))
    return found


def _rows(term: Term, student: Tensor, batch: SignalBatch) -> SequenceBatch:
    if batch.row_n is None or batch.offsets_n2 is None or batch.pair_r is None or batch.chosen_r is None:
        text = (
            "a sequence loss needs to know the rows of its tokens: row_n, offsets_n2, pair_r and chosen_r of the batch"
        )
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field=f"losses.{term.name}")])
    if batch.weights_n is not None:
        text = "a loss of whole rows knows no weights of single tokens; the batch has such"
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field=f"losses.{term.name}")])
    logprobs = {"student": student}
    if term.needs.primitive == "target":
        if "target" not in batch.answers:
            raise no_signal(term, batch)
        if batch.answers["target"].said is not None:
            text = f"{term.name} needs what the teacher says of every token; of some it said nothing"
            raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field=f"losses.{term.name}")])
        logprobs["teacher"] = batch.answers["target"].at[1.0][0][:, 0].to(student.dtype)
    if term.needs.pairs:
        _check_pairs(term, batch.pair_r, batch.chosen_r, batch)
    return SequenceBatch(logprobs, batch.row_n, batch.offsets_n2, batch.pair_r, batch.chosen_r)


def _check_pairs(term: Term, pair_r: Tensor, chosen_r: Tensor, batch: SignalBatch) -> None:
    pairs = int(pair_r.max()) + 1 if pair_r.numel() else 0
    paired = pair_r >= 0
    chosen = torch.bincount(pair_r[paired & chosen_r], minlength=pairs)
    rejected = torch.bincount(pair_r[paired & ~chosen_r], minlength=pairs)
    halves = ((chosen != 1) | (rejected != 1)).nonzero()[:, 0]
    if not len(halves):
        return
    hint = "keep both rows of a pair in one micro-batch"
    problems = []
    for row in torch.isin(pair_r, halves).nonzero()[:, 0].tolist():
        file, line = batch.places[row] if batch.places else (None, None)
        text = "the batch does not hold exactly one chosen and one rejected row of this row's pair"
        problems.append(Problem(text, file=file, line=line, field=f"losses.{term.name}", hint=hint))
    raise LimbeckError(Reason.DATA_INVALID, problems=problems)


def _marks(term: Term, bad: Tensor, batch: SignalBatch) -> Tensor:
    """Values per row or pair that are not finite, as marks on the tokens of those rows."""
    assert batch.row_n is not None
    assert batch.pair_r is not None
    by_pair = term.needs.normaliser == "pairs"
    bad_r = (bad[batch.pair_r.clamp(min=0)] & (batch.pair_r >= 0)) if by_pair and len(bad) else bad
    return bad_r[batch.row_n] if len(bad_r) else torch.zeros_like(batch.labels, dtype=torch.bool)
