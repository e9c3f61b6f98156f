"""What a teacher says about the positions of one sequence. Row t speaks of token t + 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from limbeck.signals.topk import TopK

if TYPE_CHECKING:
    from torch import Tensor

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at temperature 1 of ids that were asked for, in the asked order.

    Dense: `logprobs` f32 [n, m]. CSR: `logprobs` f32 [nnz] with `offsets` int64 [n + 1]. Laid out as the question.
    """

    ids: npt.NDArray[np.int32]
    logprobs: Float32
    offsets: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Draws at temperature 1: distinct `ids` and their `counts` (0 pads), int32 [n, s]; `logprobs` f32 [n, s]."""

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    logprobs: Float32


@dataclass(frozen=True, slots=True)
class Signal:
    """The answer to one ScoreItem: rows `first_row` … `first_row + n − 1`, with what was asked for.

    `target` f32 [n]: log-probability of the actual next token at temperature 1. `hidden`: layer to f32 [n, d].
    `full` f32 [n, v]: log-probabilities of the whole vocabulary at temperature 1. `partial`: of the sequence's later
    rows nothing was said, and that is no fault; only `top_k` and `target` can be so.
    """

    first_row: int
    n: int
    top_k: TopK | None = None
    target: Float32 | None = None
    token_ids: TokenLogprobs | None = None
    samples: Samples | None = None
    hidden: Mapping[int, Float32] = field(default_factory=dict)
    full: Float32 | None = None
    partial: bool = False

    def to_torch(self) -> dict[str, Tensor]:
        """What is there as tensors on the CPU, which share no memory with the signal. Needs torch: EXTRA_MISSING.

        `ids` int64 [n, k], `logprobs` f32 [m, n, k] and `tails` f32 [m, n], at the m temperatures of `top_k`, each row
        normalised: e^logprobs and e^tail sum to 1. `target` f32 [n]. `token_ids` int64 and `token_logprobs` f32 as they
        were asked, with `offsets` int64 where that was CSR. `sample_ids` and `sample_counts` int64 [n, s],
        `sample_logprobs` f32. `hidden.LAYER` f32 [n, d]. `full` f32 [n, v].
        """
        from limbeck.signals.tensors import tensors_of

        return tensors_of(self)
