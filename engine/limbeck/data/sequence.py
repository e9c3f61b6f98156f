"""A prepared row: token ids and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence as teacher and student read it.

    `index`: its position in its split, the key of its signal. `ids` int32 [t], the leading <bos> there. `trained`
    bool [t]: the token is a target (never token 0). `offsets` int32 [t, 2]: byte range of each token in the row's
    rendered text, (0, 0) for a token without text. `pair` and `chosen`: preference pair, −1 for none. `source` and
    `line` (from 1): where the row was read. `weights` float32 [t]: what the losses of each token are multiplied by,
    None for 1; a token of weight 0 is context only, as if it were not trained.
    """

    index: int
    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int32]
    source: str
    line: int
    pair: int = -1
    chosen: bool = True
    weights: npt.NDArray[np.float32] | None = None

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Rows whose prediction is trained: j for each trained token j + 1 of weight above 0. Int64 [n], rising."""
        kept = self.trained[1:] if self.weights is None else self.trained[1:] & (self.weights[1:] > 0)
        return np.flatnonzero(kept)

    @property
    def first_row(self) -> int:
        """First row that a signal must cover."""
        return int(self.kept[0])

    @property
    def n(self) -> int:
        """Rows that a signal covers: from the first kept row to the last, gaps included."""
        return int(self.kept[-1]) - self.first_row + 1
