"""How far a signal's loss and gradient are from those of the whole vocabulary, on rows of one's own.

Everything here is float64, so that what is seen is the signal: the part of the vocabulary that it leaves out (k), and
the rounding of what it keeps (the codec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.sequence import TokenSequence
from limbeck.functional import Answer, Head, SignalBatch, Term, Values, collate, head_loss
from limbeck.functional.head import backbone
from limbeck.signals import OutputHead, Signal
from limbeck.signals.fragments import bfloat16_bytes, bfloat16_numbers

ROWS = 64  # tokens whose whole vocabulary is in memory at once
EXACT = "exact"


@dataclass
class Line:
    """One signal against the whole vocabulary. `loss`: the weighted sum per token (tokens by their weights); errors are
    relative to it.

    `gradient_error`: ‖g − g*‖ / ‖g*‖ of ∂loss/∂hidden over all tokens, g* that of the whole vocabulary. What the codec
    adds to a signal without rounding is `…_by_codec`, by the same norms; the rest of an error comes from k. `bytes`:
    what the signal costs a token on the wire, None for the exact one.
    """

    signal: str
    bytes: float | None
    loss: float = 0.0
    loss_error: float = 0.0
    loss_by_codec: float = 0.0
    gradient_error: float = 0.0
    gradient_by_codec: float = 0.0


@dataclass
class Audit:
    """`lines[0]` is the whole vocabulary; all are over `tokens` of `rows`."""

    rows: int
    tokens: int
    lines: list[Line]


def audit(
    model: nn.Module,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    sequences: Sequence[TokenSequence],
    signals: Mapping[int, Signal],
    teacher_head: OutputHead | None,
    costs: Mapping[str, float],
    ks: Sequence[int],
    *,
    advance: Callable[[int], object] = lambda tokens: None,
) -> Audit:
    """Compare signals of `sequences` with the whole vocabulary, for token losses that read a top k.

    `signals` by index of the sequence: `top_k` at least as large as any of `ks`, at every temperature of `values`; and
    the whole vocabulary as `full`, or as the last layer's hidden states with `teacher_head`. `costs`: bytes a token of
    each signal's name (`top_k 64`, `hidden states f32`, `hidden states bf16`, `full`).
    """
    student = Head.of(model)
    head = Head(student.weight.detach().double(), _double(student.bias), student.scale, student.soft_cap)
    teacher = None if teacher_head is None else _head(teacher_head)
    tokens = sum(len(sequence.kept) for sequence in sequences)
    total = sum(_weight(sequence) for sequence in sequences)
    lines = {name: Line(name, costs.get(name)) for name in _names(ks, teacher is not None)}
    norm = 0.0
    temperatures = sorted({value.temperature for value in values.values()})
    for sequence in sequences:
        inputs, batch = collate([sequence], [signals[sequence.index]], temperatures, pad_id=0)
        with torch.no_grad():
            states = batch.select(backbone(model)(**inputs, use_cache=False).last_hidden_state).double()
        for start in range(0, batch.n, ROWS):
            rows = slice(start, start + ROWS)

            def measure(part: Part, rows: slice = rows, states: Tensor = states) -> tuple[float, Tensor]:
                chosen = [term if part.k is None else replace(term, top_k=part.k) for term in terms]
                return _loss(states[rows], head, part.batch, chosen, values, total, part.head)

            exact: tuple[float, Tensor] | None = None
            for name, rounded, unrounded in _parts(batch, rows, teacher, temperatures, ks):
                loss, gradient = measure(rounded)
                exact = exact or (loss, gradient)
                without = exact if unrounded is None else measure(unrounded)
                line = lines[name]
                line.loss += loss
                line.loss_error += loss - exact[0]
                line.loss_by_codec += loss - without[0]
                line.gradient_error += float((gradient - exact[1]).square().sum())
                line.gradient_by_codec += float((gradient - without[1]).square().sum())
            assert exact is not None  # the first part
            norm += float(exact[1].square().sum())
            advance(len(exact[1]))
    whole = abs(lines[EXACT].loss) or 1.0
    for line in lines.values():
        line.loss_error, line.loss_by_codec = abs(line.loss_error) / whole, abs(line.loss_by_codec) / whole
        line.gradient_error = (line.gradient_error / (norm or 1.0)) ** 0.5
        line.gradient_by_codec = (line.gradient_by_codec / (norm or 1.0)) ** 0.5
    return Audit(len(sequences), tokens, list(lines.values()))


def _weight(sequence: TokenSequence) -> float:
    """What the tokens of a sequence count together."""
    kept = sequence.kept
    return len(kept) if sequence.weights is None else float(sequence.weights[kept + 1].astype(np.float64).sum())


def _names(ks: Sequence[int], hidden: bool) -> list[str]:
    whole = ["hidden states f32", "hidden states bf16"] if hidden else ["full"]
    return [EXACT, *whole, *(f"top_k {k}" for k in sorted(ks, reverse=True))]


@dataclass(frozen=True)
class Part:
    """A signal of some rows; `head` makes hidden states a distribution."""

    batch: SignalBatch
    head: Head | None = None
    k: int | None = None


def _parts(
    batch: SignalBatch, rows: slice, teacher: Head | None, temperatures: Sequence[float], ks: Sequence[int]
) -> Iterator[tuple[str, Part, Part | None]]:
    """The signals of some rows: name, as it comes, and as it would be without rounding; None where that is exact.

    The exact one comes first.
    """
    labels = batch.labels[rows]
    weights_n = None if batch.weights_n is None else batch.weights_n[rows]
    if teacher is not None:
        states = batch.hidden[-1][rows]
        exact = Part(SignalBatch(labels, hidden={-1: states.double()}, weights_n=weights_n), teacher)
        yield EXACT, exact, None
        yield "hidden states f32", exact, None
        rounded = torch.from_numpy(bfloat16_numbers(bfloat16_bytes(states.numpy())).reshape(states.shape).copy())
        found = SignalBatch(labels, hidden={-1: rounded.double()}, weights_n=weights_n)
        yield "hidden states bf16", Part(found, teacher), None
        logits = teacher.logits(states.double())
    else:
        assert batch.full is not None  # asked for where there are no hidden states
        logits = batch.full[rows].double()
        exact = Part(SignalBatch(labels, full=logits, weights_n=weights_n))
        yield EXACT, exact, None
        yield "full", exact, None
    stored = batch.answers["top_k"]
    packed = Answer(stored.ids[rows], {t: (a[rows].double(), b[rows].double()) for t, (a, b) in stored.at.items()})
    for k in ks:
        both = ({"top_k": answer} for answer in (packed, Answer.of_logits(logits, k, temperatures)))
        coded, alone = (Part(SignalBatch(labels, answer, weights_n=weights_n), k=k) for answer in both)
        yield f"top_k {k}", coded, alone


def _loss(
    states: Tensor,
    head: Head,
    batch: SignalBatch,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    total: float,
    teacher: Head | None,
) -> tuple[float, Tensor]:
    """The part of these rows [c, d] in the loss per token, and its gradient."""
    leaf = states.detach().requires_grad_()
    counts = {"tokens": total, "rows": total, "pairs": total}
    output = head_loss(leaf, head, batch, terms, values, counts, teacher_head=teacher)
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return float(output.loss.detach()), leaf.grad


def _head(found: OutputHead) -> Head:
    bias = None if found.bias is None else torch.from_numpy(np.array(found.bias, np.float64))
    return Head(torch.from_numpy(np.array(found.weight, np.float64)), bias, found.scale, found.soft_cap)


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().double()
