"""The loss `total_variation`: all that a token loss is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.interfaces import Needs, Support


class TotalVariation:
    """½ Σ |p − q| over the support and its tail, one number a token: in [0, 1], 0 where p = q."""

    needs = Needs("top_k")

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
        on_support = (student.on_support.exp() - teacher.on_support.exp()).abs().sum(-1)
        return (on_support + torch.abs(student.tail.exp() - teacher.tail.exp())) / 2
