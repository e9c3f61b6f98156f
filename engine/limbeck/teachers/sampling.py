"""Drawing from logits with uniform numbers that are given, so that a draw belongs to its item and not to its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.interfaces import Sampling


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
    if sampling.top_k or sampling.top_p < 1:
        k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
        values, ids = torch.topk(logits, k)
        if sampling.top_p < 1:
            shares = torch.softmax(values, -1)
            before = shares.cumsum(-1) - shares  # the smallest set that reaches top_p, never empty
            values = values.masked_fill(before >= sampling.top_p, float("-inf"))
        return ids.gather(1, draw(values, uniforms[:, None]))[:, 0]
    return draw(logits, uniforms[:, None])[:, 0]
