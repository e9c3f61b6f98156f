"""The model: logits as a hash of the ids read so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VERSION = 1  # of the function from ids to logits; part of the weights digest
NOISE = 4.0  # logits of all ids lie in [0, NOISE)
ECHO = 9.0  # is added for the id that is repeated
END = 12.0  # is added for the end ids, once in END_ONE_IN rows
END_ONE_IN = 16

Logits = npt.NDArray[np.float64]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): 64 bits that look random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def states(ids: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.uint64]:
    """One number per row [t], a hash of the ids up to and with that row's."""
    found = np.zeros(len(ids), dtype=np.uint64)
    state = np.array([seed], dtype=np.uint64)
    for row, token in enumerate(ids):
        state = _mix(state ^ np.uint64(int(token) + 1))
        found[row] = state[0]
    return found


def logits(
    ids: npt.NDArray[np.integer], rows: range, state: npt.NDArray[np.uint64], vocab_size: int, ends: Sequence[int]
) -> Logits:
    """Logits float64 [n, v] of `rows` of a sequence whose `states` are given; row t reads ids[: t + 1] only."""
    result = np.empty((len(rows), vocab_size))
    words = np.arange(vocab_size, dtype=np.uint64) << np.uint64(20)
    for place, row in enumerate(rows):
        result[place] = (_mix(state[row] ^ words) >> np.uint64(11)) * (NOISE / 2**53)
        number = int(state[row])
        if row > 0:  # not the first token, which may be <bos>
            result[place, ids[1 + number % row]] += ECHO
        if number >> 32 and (number >> 32) % END_ONE_IN == 0:
            result[place, list(ends)] += END
    return result


def log_softmax(values: Logits) -> Logits:
    """Log-probabilities over the last axis; −inf stays −inf."""
    peak = values.max(axis=-1, keepdims=True)
    result: Logits = values - peak - np.log(np.exp(values - peak).sum(axis=-1, keepdims=True))
    return result
