"""Arithmetic with log-probabilities of −inf whose gradients are 0, not NaN. Ready for authors of losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.interfaces import Support

NEVER = -math.inf


def logsumexp(x: Tensor) -> Tensor:
    """log Σ exp over the last axis. Unlike torch's, all −inf gives −inf with zero gradient."""
    top = x.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == NEVER, 0.0)
    total = (x - top).exp().sum(-1)
    none = total == 0
    return (total.masked_fill(none, 1.0).log() + top.squeeze(-1)).masked_fill(none, NEVER)


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b). Unlike torch's, two −inf give −inf with zero gradient."""
    none = (a == NEVER) & (b == NEVER)
    return torch.logaddexp(a.masked_fill(none, 0.0), b.masked_fill(none, 0.0)).masked_fill(none, NEVER)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp x) for x ≤ 0, exact at both ends (Mächler, 2012)."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def outcomes(side: Support) -> Tensor:
    """The support's log-probabilities with the tail as one more outcome: [n, k + 1]."""
    return torch.cat([side.on_support, side.tail.unsqueeze(-1)], dim=-1)


def relative_entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a (log a − log b) over the last axis.

    An outcome with a = 0 contributes exactly 0 with zero gradient (selected before the difference, and after). One
    with a > 0 and b = 0 makes the sum +inf.
    """
    none = log_a.exp() == 0
    safe_a, safe_b = log_a.masked_fill(none, 0.0), log_b.masked_fill(none, 0.0)
    return (safe_a.exp() * (safe_a - safe_b)).masked_fill(none, 0.0).sum(-1)
