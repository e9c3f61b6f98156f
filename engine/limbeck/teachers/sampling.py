"""Drawing from logits with uniform numbers that are given, so that a draw belongs to its item and not to its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.interfaces import Sampling

NUCLEUS = 1024  # likeliest ids among which a top_p set is looked for first


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Ids [n, s] drawn from softmax(logits [n, v]) by inverting its distribution at `uniforms` float64 [n, s].

    −inf is never drawn.
    """
    mass = torch.exp(logits - logits.amax(-1, keepdim=True)).double().cumsum_(-1)
    total = mass[:, -1:].contiguous()
    ids = torch.searchsorted(mass, uniforms.to(mass.device) * total, right=True)
    last = (mass < total).sum(-1, keepdim=True)  # the last id with mass, were rounding to go past it
    return torch.minimum(ids, last)


def next_ids(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """The next id [n] for `logits` [n, v] and `uniforms` float64 [n]: greedy, or temperature, top_k, top_p in turn."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    ids = None
    if sampling.top_k:
        logits, ids = torch.topk(logits, min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1:
        logits, places = _nucleus(logits, sampling.top_p)
        ids = places if ids is None else ids.gather(1, places)
    drawn = draw(logits, uniforms[:, None])
    return (drawn if ids is None else ids.gather(1, drawn))[:, 0]


def _nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """(logits, ids) [n, k], falling, −inf outside the smallest set whose share reaches `top_p`; never empty.

    Holtzman et al., 2020. The set is nearly always among few ids, and sorting a whole vocabulary costs more than the
    head itself.
    """
    total = torch.logsumexp(logits, -1, keepdim=True)
    for k in (min(NUCLEUS, logits.shape[-1]), logits.shape[-1]):
        values, ids = torch.topk(logits, k)
        shares = torch.exp(values - total).double()
        before = shares.cumsum(-1) - shares
        if (before[:, -1] >= top_p).all():
            break
    outside = before >= top_p
    outside[:, 0] = False
    return values.masked_fill(outside, float("-inf")), ids
