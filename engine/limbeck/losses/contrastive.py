"""Direct preference optimisation on pairs of rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.interfaces import Needs, SequenceBatch


def log_ratios(batch: SequenceBatch) -> Tensor:
    """log q(y)/p(y) of each row's text y [r], in nats: q the student, p the teacher."""
    ratio_n = batch.logprobs["student"] - batch.logprobs["teacher"]
    return ratio_n.new_zeros(batch.rows).index_add(0, batch.row_n, ratio_n)


class Contrastive:
    """−log σ(beta · (log q(c)/p(c) − log q(r)/p(r))): c the chosen text, r the rejected, p the reference.

    Rafailov et al., 2023, eq. 7. The teacher is the reference: a model that gives `target`.
    """

    def __init__(self, needs: Needs) -> None:
        self.needs = needs

    def __call__(self, batch: SequenceBatch, knobs: Mapping[str, float]) -> Tensor:
        ratio_r = log_ratios(batch)
        paired_r = batch.pair_r >= 0
        sign_r = torch.where(batch.chosen_r, 1.0, -1.0).to(ratio_r.dtype)[paired_r]
        pairs = int(batch.pair_r.max()) + 1 if batch.rows else 0
        margin_p = ratio_r.new_zeros(pairs).index_add(0, batch.pair_r[paired_r], sign_r * ratio_r[paired_r])
        return -logsigmoid(knobs["beta"] * margin_p)
