"""Random numbers of one item, the same in whatever batch it is answered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from limbeck.signals import Samples


def uniforms(seed: int, item_id: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Uniform draws in [0, 1) that depend on (seed, item_id) alone; a longer first axis keeps the earlier draws."""
    words = [number & (2**64 - 1) for number in (seed, item_id)]
    return np.random.default_rng(words).random(shape)


def tally(drawn: npt.NDArray[np.integer], logprobs: npt.NDArray[np.floating]) -> Samples:
    """Draws [n, s] and their log-probabilities [n, s] as distinct ids with counts, ids ascending; count 0 pads."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ids = np.take_along_axis(drawn, order, axis=1).astype(np.int32)
    values = np.take_along_axis(logprobs, order, axis=1).astype(np.float32)
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    counts = np.zeros(ids.shape, dtype=np.int32)
    row, place = np.nonzero(first)
    np.add.at(counts, (np.repeat(np.arange(len(ids)), ids.shape[1]), np.cumsum(first, axis=1).ravel() - 1), 1)
    packed_ids, packed_values = np.zeros_like(ids), np.zeros_like(values)
    slot = np.cumsum(first, axis=1)[row, place] - 1
    packed_ids[row, slot], packed_values[row, slot] = ids[row, place], values[row, place]
    return Samples(packed_ids, counts, packed_values)
