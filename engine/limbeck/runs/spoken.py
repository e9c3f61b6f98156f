"""Signals of sequences out of what the teacher said of their tokens while it wrote the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.files import read_json_lines
from limbeck.interfaces import Said, Want
from limbeck.runs.generate import ROWS
from limbeck.runs.said import SAID, read_said

if TYPE_CHECKING:
    from limbeck.data import TokenSequence
    from limbeck.signals import Signal


class Spoken:
    """What was said of the sequences of one split. `want`: what their store holds.

    A sequence's answer must be the tokens that the teacher wrote, from the first on: the trained ones, one unbroken
    run, begin with what was said of, or the other way round (an answer that was cut; an end token that the teacher said
    nothing of). Of a row that makes several sequences nothing is known.
    """

    def __init__(self, folder: Path, sequences: Sequence[TokenSequence], want: Want) -> None:
        self._want = want
        self._said: Mapping[int, Said] = read_said(folder / SAID)
        rows = read_json_lines(folder / ROWS) if self._said else ()
        self._positions = {line: int(row["lineage"]["position"]) for line, row in rows}
        self._sequences = Counter(sequence.line for sequence in sequences) if self._said else Counter()

    def whole(self, sequence: TokenSequence) -> Signal | None:
        """The signal, where all of it was said: as many ids as are wanted, of every row. None elsewhere."""
        said, first, n = self._found(sequence)
        if said is None or n < sequence.n or said.top_k.k < self._want.top_k:
            return None
        return self._signal(sequence, said, first, n)

    def part(self, sequence: TokenSequence) -> Signal:
        """What was said of the first rows, possibly of none, with as many ids as are wanted; see `TopK.resized`."""
        said, first, n = self._found(sequence)
        return self._signal(sequence, said, first, n)

    def _found(self, sequence: TokenSequence) -> tuple[Said | None, int, int]:
        """What was said, the place in it of the sequence's first row, and the rows from there on; None, 0, 0."""
        said = self._said.get(self._positions.get(sequence.line, -1)) if self._sequences[sequence.line] == 1 else None
        if said is None or (self._want.target and said.target is None):
            return None, 0, 0
        places = np.flatnonzero(sequence.trained)
        answer = sequence.ids[places]
        both = min(len(answer), len(said.ids))
        if places[-1] - places[0] >= len(places) or not np.array_equal(answer[:both], said.ids[:both]):
            return None, 0, 0
        first = sequence.first_row + 1 - int(places[0])  # tokens before it may be context only: a rationale
        return said, first, min(max(0, len(said.ids) - first), sequence.n)

    def _signal(self, sequence: TokenSequence, said: Said | None, first: int, n: int) -> Signal:
        from limbeck.signals import Signal, TopK

        rows, want = slice(first, first + n), self._want
        nothing = TopK(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.uint16), np.zeros((0, 1), np.float32), (1.0,))
        top_k = nothing if said is None else said.top_k.take(rows)
        target = np.zeros(0, np.float32) if said is None or said.target is None else said.target[rows]
        return Signal(
            sequence.first_row,
            n,
            top_k=top_k.resized(want.top_k) if want.top_k else None,
            target=target if want.target else None,
            partial=n < sequence.n,
        )
