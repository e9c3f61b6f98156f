"""vLLM's flat log-probabilities as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from limbeck_vllm.frames import Rows


def rows_of(flat: Any, k: int, start: int, stop: int) -> Rows:
    """Entries `start` … `stop` − 1 of a ``vllm.logprobs.FlatLogprobs``, each of an actual token and the k likeliest.

    An entry begins with the actual token, which comes a second time where it is among the likeliest: what follows the
    first number is the support. Entry j of a prompt speaks of token j, so that it is row j − 1; entry 0 is empty.
    `k` −1: as many as the first entry holds. Raises ValueError where entries do not hold k + 1 numbers.
    """
    width = k + 1 if k >= 0 else flat.end_indices[start] - flat.start_indices[start]
    begin, end = (flat.start_indices[start], flat.end_indices[stop - 1]) if stop > start else (0, 0)
    if end - begin != (stop - start) * width:
        raise ValueError(f"entries {start} … {stop - 1} hold {end - begin} numbers, {width} each were asked")
    ids = np.array(flat.token_ids[begin:end], dtype=np.int32).reshape(-1, width)
    logprobs = np.array(flat.logprobs[begin:end], dtype=np.float32).reshape(-1, width)
    return Rows(logprobs[:, 0].copy(), ids[:, 1:].copy(), logprobs[:, 1:].copy())
