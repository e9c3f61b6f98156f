"""The student's softmax over the vocabulary, reduced to the ids that a loss looks at.

A loss on a support never needs the whole vocabulary: with the ids U of all supports, the softmax over v logits is a
softmax over |U| + 1, the last one being the logsumexp of all the rest. Autograd runs on that small leaf; its gradient
is exact on U, and for an id j off U it is g_rest · exp(z_j − lse_rest). Nothing in it is 0 · ∞ when a mass underflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.interfaces import Support
from limbeck.losses.numerics import NEVER, logsumexp


class Reduced:
    """The softmax of z [n, v] over the ids [n, u] (duplicates allowed) and one outcome for all others.

    Takes z's memory: after it, z is garbage until :meth:`gradient`.
    """

    def __init__(self, z: Tensor, ids: Tensor) -> None:
        self._z = z
        self._ids = ids.sort(dim=1).values
        columns = z.gather(1, self._ids)
        columns[:, 1:].masked_fill_(self._ids[:, 1:] == self._ids[:, :-1], NEVER)
        self._kept_top = columns.amax(1)
        z.scatter_(1, self._ids, NEVER)
        self._rest_top = z.amax(1)
        top = self._rest_top.masked_fill(self._rest_top == NEVER, 0.0)
        z.sub_(top[:, None]).exp_()
        self._rest = z.sum(1)
        self.leaf = torch.cat([columns, (top + self._rest.log())[:, None]], dim=1)
        self.leaf.requires_grad_(torch.is_grad_enabled())
        self._log_q = torch.log_softmax(self.leaf, dim=1)

    def support(self, ids: Tensor, valid: Tensor) -> Support:
        """Log-probabilities of `ids` [n, k], all of them given before, and of all others; −inf where not valid."""
        places = torch.searchsorted(self._ids, ids)
        return _split(self._log_q, places, valid)

    def is_top(self, ids: Tensor) -> Tensor:
        """Whether the id [n] is the student's most likely. [n]"""
        z = self.leaf.detach().gather(1, torch.searchsorted(self._ids, ids[:, None]))[:, 0]
        return (z >= self._kept_top) & (z >= self._rest_top)

    def gradient(self, grad: Tensor) -> Tensor:
        """∂L/∂z [n, v] in z's memory, from ∂L/∂leaf [n, u + 1]."""
        share = grad[:, -1] / self._rest.masked_fill(self._rest == 0, 1.0)
        return self._z.mul_(share[:, None]).scatter_add_(1, self._ids, grad[:, :-1])


class Whole:
    """The softmax of z [n, v] as it is: for losses that look at the whole vocabulary."""

    def __init__(self, z: Tensor) -> None:
        self.leaf = z.detach().requires_grad_(torch.is_grad_enabled())
        self._log_q = torch.log_softmax(self.leaf, dim=1)

    def support(self, ids: Tensor, valid: Tensor) -> Support:
        """See :meth:`Reduced.support`."""
        return _split(self._log_q, ids, valid)

    def shared(self, vocab_size: int) -> Support:
        """Log-probabilities of the first `vocab_size` ids, and of those above."""
        return split_vocabulary(self._log_q, vocab_size)

    def is_top(self, ids: Tensor) -> Tensor:
        """See :meth:`Reduced.is_top`."""
        return self._log_q.detach().argmax(1) == ids

    def gradient(self, grad: Tensor) -> Tensor:
        """∂L/∂z, which is what it was given."""
        return grad


def split_vocabulary(logprobs: Tensor, vocab_size: int) -> Support:
    """Log-probabilities [n, v] as a support of the first `vocab_size` ids and a tail of those above."""
    rest = logprobs[:, vocab_size:]
    tail = logsumexp(rest) if rest.shape[1] else logprobs.new_full(logprobs.shape[:1], NEVER)
    return Support(logprobs[:, :vocab_size], tail)


def _split(log_q: Tensor, places: Tensor, valid: Tensor) -> Support:
    """Columns `places` of log_q [n, c], and the logsumexp of the others: over the complement, never 1 − Σ."""
    n, columns = log_q.shape
    on_support = log_q.gather(1, places).masked_fill(~valid, NEVER)
    inside = torch.zeros(n, columns + 1, dtype=torch.bool, device=log_q.device)
    inside.scatter_(1, places.masked_fill(~valid, columns), True)  # column c takes what is not valid
    return Support(on_support, logsumexp(log_q.masked_fill(inside[:, :-1], NEVER)))
