"""The k most likely ids with quantised log-probabilities and exact tails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TopK:
    """n rows of k distinct ids, sorted by (u ascending, id ascending).

    `ids` int32 [n, k]; `u` uint16 [n, k], the code of the log-probability at temperature 1; `tails` f32 [n, m], log of
    the mass outside the ids at each of the m `temperatures`.
    """

    ids: npt.NDArray[np.int32]
    u: npt.NDArray[np.uint16]
    tails: npt.NDArray[np.float32]
    temperatures: tuple[float, ...]
