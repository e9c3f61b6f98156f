"""Held-out preference pairs: does a model favour the chosen text more than its reference does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from limbeck.data.sequence import TokenSequence
from limbeck.functional import Head, SignalBatch, Term, Values, head_loss
from limbeck.interfaces import Needs, SequenceBatch
from limbeck.losses.contrastive import log_ratios
from limbeck.signals import SignalStore

TIE = 1e-3  # nats: a margin that rounding alone can give, as between a reference and its copy
Pairs = dict[str, float | int | None]


def pair_figures(margins: Sequence[float]) -> Pairs:
    """`preference_accuracy` and `preference_margin` of pairs with these margins, in nats; null without a pair.

    The margin of a pair is log q(c)/p(c) − log q(r)/p(r), with c its chosen and r its rejected text, q the model and p
    the reference: what the objective of Rafailov et al., 2023 (eq. 7) multiplies by β, and so the difference of the
    implicit rewards over β. Accuracy is the share of pairs with a margin above 0, whatever β; one within `TIE` of 0
    counts half, so that a model that is its reference has 0.5. NaN where a margin is.
    """
    if not len(margins):
        return {"preference_accuracy": None, "preference_margin": None}
    margin_p = np.asarray(margins, dtype=np.float64)
    favoured = np.where(np.abs(margin_p) <= TIE, 0.5, margin_p > 0)
    favoured[np.isnan(margin_p)] = np.nan
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        return {"preference_accuracy": float(favoured.mean()), "preference_margin": float(margin_p.mean())}


def whole_pairs(sequences: Sequence[TokenSequence], store: SignalStore | None) -> set[int]:
    """Pairs of which both texts have a trained token; none where the reference's log-probabilities are not stored."""
    if store is None or not store.header.target or store.header.partial:
        return set()
    halves = [{s.pair for s in sequences if s.pair >= 0 and s.chosen == side and len(s.kept)} for side in (0, 1)]
    return halves[0] & halves[1]


class Preferences:
    """Adds up the log-ratios of rows, which may come in any order and company."""

    def __init__(self, head: Head, pairs: set[int]) -> None:
        self._head = head
        self._loss = _RowRatios()
        self._term = Term("preferences", "sequence", self._loss, self._loss.needs)
        self._ratios: dict[tuple[int, bool], float] = {}
        self._pairs = pairs

    def add(self, hidden: Tensor, batch: SignalBatch, group: Sequence[TokenSequence]) -> None:
        """Take the rows of a batch: hidden states [n, d] of its kept tokens. Costs one more projection of them."""
        if self._pairs.isdisjoint(sequence.pair for sequence in group):
            return
        head_loss(hidden, self._head, batch, [self._term], {self._term.name: Values()})
        for sequence, ratio in zip(group, self._loss.ratio_r.tolist(), strict=True):
            self._ratios[sequence.pair, sequence.chosen] = ratio

    def figures(self) -> Pairs:
        """See :func:`pair_figures`; of an evaluation that ended early, those of the pairs that were read whole."""
        whole = sorted(pair for pair in self._pairs if {(pair, True), (pair, False)} <= self._ratios.keys())
        return pair_figures([self._ratios[pair, True] - self._ratios[pair, False] for pair in whole])


class _RowRatios:
    """A sequence loss that keeps its values: nothing else sees the log-probabilities of a batch."""

    needs = Needs("target", normaliser="rows")
    ratio_r: Tensor

    def __call__(self, batch: SequenceBatch, knobs: Mapping[str, float]) -> Tensor:
        self.ratio_r = log_ratios(batch)
        return self.ratio_r
