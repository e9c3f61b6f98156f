"""Evaluation on held-out rows: every figure weighted by tokens, no [batch, time, vocab] logits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from limbeck.data.sequence import TokenSequence
from limbeck.functional import Head, Term, Values, check_finite, collate, head_loss
from limbeck.functional.head import backbone
from limbeck.interfaces import LossContext
from limbeck.signals import SignalStore
from limbeck.training.preferences import Preferences, pair_figures, whole_pairs

Figures = dict[str, float | int | None]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    store: SignalStore | None,
    *,
    batch_tokens: int = 8192,
    advance: Callable[[int], object] = lambda tokens: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Figures:
    """The figures of ``report.evaluation.ModelFigures`` over the trained tokens of `sequences`.

    `cross_entropy` (nats a token) and its exponential `perplexity`; with a `store` also `forward_kl` from the teacher's
    top_k at temperature 1 with the tail as one outcome, and `top1_agreement`, both over the tokens that it spoke of;
    where it has the target too, and there
    are preference pairs, the figures of :func:`limbeck.training.preferences.pair_figures`, the teacher the reference.
    `tokens_per_second` counts the tokens read. `advance` is told of trained tokens done; `stop` is asked between
    batches, and ends it early with the figures so far. Raises LOSS_NOT_FINITE, and what the store raises.
    """
    terms = _terms(model, store)
    values = {term.name: Values() for term in terms}
    head, base = Head.of(model), backbone(model)
    device = head.weight.device
    pad = model.config.get_text_config().pad_token_id  # type: ignore[operator, union-attr]
    totals = dict.fromkeys(("cross_entropy", "forward_kl", "top1_agreement", "compared"), 0.0)
    preferences = Preferences(head, whole_pairs(sequences, store))
    tokens = read = 0
    seconds = 0.0
    was_training = model.training
    model.eval()
    try:
        for group in _batches(sequences, batch_tokens):
            signals = [None if store is None else store.get(sequence) for sequence in group]
            inputs, weighed = collate(group, signals, (1.0,), pad_id=pad if pad is not None and pad >= 0 else 0)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            batch = replace(weighed, weights_n=None).to(device)
            if not tokens:
                base(**inputs, use_cache=False)  # pages, threads and kernels: not the model's speed
            began = time.perf_counter()
            hidden = batch.select(base(**inputs, use_cache=False).last_hidden_state)
            output = head_loss(hidden, head, batch, terms, values)
            check_finite(output.not_finite, batch)
            for name, total in {**output.sums, **output.diagnostics}.items():
                if name in totals:
                    totals[name] += float(total)
            seconds += time.perf_counter() - began
            preferences.add(hidden, batch, group)
            tokens += batch.n
            read += sum(len(sequence.ids) for sequence in group)
            advance(batch.n)
            if stop() is not None:
                break
    finally:
        model.train(was_training)
    rate = read / seconds if seconds else None
    return {**_figures(model, totals, tokens, rate), **preferences.figures()}


def teacher_figures(sequences: Sequence[TokenSequence], store: SignalStore) -> Figures:
    """The teacher's own figures, from what it said: perplexity where the target was stored, no distance to itself.

    The perplexity is of all trained tokens, like a student's, or unknown.
    Nor does it, as the reference, favour one text of a preference pair.
    """
    total, tokens = 0.0, 0
    for sequence in (sequence for sequence in sequences if len(sequence.kept)):
        signal = store.get(sequence)
        if signal.target is None or signal.n < sequence.n:
            total = math.nan
            break
        total -= float(signal.target[sequence.kept - signal.first_row].astype("float64").sum())
        tokens += len(sequence.kept)
    known = tokens > 0 and math.isfinite(total)
    return {
        "cross_entropy": total / tokens if known else None,
        "perplexity": math.exp(total / tokens) if known else None,
        "forward_kl": 0.0,
        "top1_agreement": 1.0,
        **pair_figures([0.0] * len(whole_pairs(sequences, store))),
    }


def _terms(model: nn.Module, store: SignalStore | None) -> list[Term]:
    from limbeck.interfaces import LossConfig, TokenLossConfig
    from limbeck.losses import PLUGINS

    known = {plugin.name: plugin for plugin in PLUGINS}
    context = LossContext(0, None, Head.of(model).vocab_size)
    terms = [Term.of(known["cross_entropy"], LossConfig(), context)]
    if store is not None and store.header.k:
        config = TokenLossConfig(top_k=store.header.k, temperature_squared=False)
        terms.append(Term.of(known["forward_kl"], config, context))
    return terms


def _batches(sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """Rows of like length together, up to `batch_tokens` padded tokens; at least one a batch."""
    lengths = sorted((len(s.ids), index) for index, s in enumerate(sequences) if len(s.kept))
    group: list[int] = []
    for length, index in lengths:
        if group and length * (len(group) + 1) > batch_tokens:
            yield [sequences[i] for i in group]
            group = []
        group.append(index)
    if group:
        yield [sequences[i] for i in group]


def _figures(model: nn.Module, totals: dict[str, float], tokens: int, rate: float | None) -> Figures:
    parameters = list(model.parameters())  # tied ones come once
    entropy = totals["cross_entropy"] / tokens if tokens else None
    compared = totals["compared"]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "tokens_per_second": rate,
        "cross_entropy": entropy,
        "perplexity": None if entropy is None else math.exp(min(entropy, 700.0)),  # beyond, a double overflows
        "forward_kl": totals["forward_kl"] / compared if compared else None,
        "top1_agreement": totals["top1_agreement"] / compared if compared else None,
    }
