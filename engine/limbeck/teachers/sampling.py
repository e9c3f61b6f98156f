"""Drawing from logits with uniform numbers that are given, so that a draw belongs to its item and not to its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.interfaces import Sampling

NUCLEUS = (256, 4096)  # likeliest ids among which a top_p set is looked for, before all are sorted


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
    """The next id [n] for `logits` [n, v] and `uniforms` float64 [n]: greedy, or temperature, top_k, top_p in turn.

    Takes the memory of `logits`.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.div_(sampling.temperature)
    at = uniforms[:, None]
    ids = None
    if sampling.top_k:
        logits, ids = torch.topk(logits, min(sampling.top_k, logits.shape[-1]))
    drawn = draw(logits, at) if sampling.top_p == 1 else _draw_nucleus(logits, sampling.top_p, at)
    return (drawn if ids is None else ids.gather(1, drawn))[:, 0]


def _draw_nucleus(logits: Tensor, top_p: float, uniforms: Tensor) -> Tensor:
    """Ids [n, s] drawn from the smallest set whose share reaches `top_p` (Holtzman et al., 2020); never empty.

    Few rows need more than a few ids, and sorting a whole vocabulary costs more than the model's head: each row is
    looked at among ever more ids until its set is among them.
    """
    uniforms = uniforms.to(logits.device)
    total = torch.logsumexp(logits, -1, keepdim=True)
    size = logits.shape[-1]
    chosen = torch.zeros(uniforms.shape, dtype=torch.long, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for k in sorted({min(k, size) for k in (*NUCLEUS, size)}):
        values, ids = torch.topk(logits if len(left) == len(logits) else logits[left], k)
        shares = torch.exp(values - total[left]).double()
        before = shares.cumsum(-1) - shares
        found = before[:, -1] >= top_p if k < size else torch.ones_like(left, dtype=torch.bool)
        outside = before[found] >= top_p
        outside[:, 0] = False
        drawn = draw(values[found].masked_fill(outside, float("-inf")), uniforms[left[found]])
        chosen[left[found]] = ids[found].gather(1, drawn)
        left = left[~found]
        if not len(left):
            break
    return chosen
