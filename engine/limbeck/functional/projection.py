"""The head over n hidden states, a chunk of tokens at a time, with its gradients by hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.functional.head import Head, wide

CHUNK_BYTES = 256 * 2**20  # what the buffers that grow with the vocabulary may take, at least one token's


class Projection:
    """Logits of `hidden` [n, d] by chunks, and the sums of the gradients that are wanted, in fp32 or wider.

    Both are taken as detached. `want`: gradients of hidden states, weight and bias. `buffers`: how many [chunk, v]
    buffers the caller needs. `compute`: the type of the matrix products.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        want: tuple[bool, bool, bool],
        chunk_bytes: int,
        buffers: int,
        compute: torch.dtype,
    ) -> None:
        self.dtype = wide(compute)
        self._hidden = hidden.detach().to(compute)
        self._weight = head.weight.detach().to(compute)
        self._bias = None if head.bias is None else head.bias.detach().to(self.dtype)
        self._scale, self._cap = head.scale, head.soft_cap
        self._slope: Tensor | None = None
        want_hidden, want_weight, want_bias = want
        self._want_any = any(want)
        self.hidden_grad = torch.zeros_like(hidden, dtype=self.dtype) if want_hidden else None
        self.weight_grad = torch.zeros_like(head.weight, dtype=self.dtype) if want_weight else None
        self.bias_grad = torch.zeros_like(self._bias) if want_bias and self._bias is not None else None
        row_bytes = head.vocab_size * torch.finfo(self.dtype).bits // 8
        buffers += self._cap is not None and self._want_any
        self._chunk = max(1, min(len(hidden), chunk_bytes // (row_bytes * buffers)))
        self._buffer = hidden.new_empty(self._chunk, head.vocab_size, dtype=self.dtype)

    def chunks(self) -> Iterator[slice]:
        """The slices of tokens, in order."""
        n = len(self._hidden)
        return (slice(start, min(start + self._chunk, n)) for start in range(0, n, self._chunk))

    def logits(self, rows: slice) -> Tensor:
        """Logits [c, v] of one chunk, in memory that the next call takes again."""
        hidden = self._hidden[rows]
        out = self._buffer[: len(hidden)]
        if hidden.dtype == self.dtype:
            torch.mm(hidden, self._weight.t(), out=out)
        else:
            out.copy_(hidden @ self._weight.t())
        if self._bias is not None:
            out.add_(self._bias)
        if self._scale != 1.0:
            out.mul_(self._scale)
        if self._cap is not None:
            out.div_(self._cap).tanh_()
            if self._want_any:
                self._slope = torch.square(out).neg_().add_(1.0)
            out.mul_(self._cap)
        return out

    def backward(self, rows: slice, grad: Tensor) -> None:
        """Add the gradients that follow from ∂L/∂logits [c, v] of the chunk last projected. Takes its memory."""
        if self._slope is not None:
            grad.mul_(self._slope)
        if self._scale != 1.0:
            grad.mul_(self._scale)
        hidden = self._hidden[rows]
        narrow = grad.to(hidden.dtype)
        if self.hidden_grad is not None:
            self.hidden_grad[rows] = narrow @ self._weight
        if self.weight_grad is not None and hidden.dtype == self.dtype:
            self.weight_grad.addmm_(narrow.t(), hidden)
        elif self.weight_grad is not None:
            self.weight_grad += narrow.t() @ hidden
        if self.bias_grad is not None:
            self.bias_grad += grad.sum(0)


def compute_dtype(hidden: Tensor, head: Head) -> torch.dtype:
    """What the matrix products run in: autocast's type where it is on, else the weight's; fp16 as fp32.

    fp16 would lose gradients that carry a factor 1 / N before a loss scale reaches them.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    return torch.float32 if dtype == torch.float16 else dtype
