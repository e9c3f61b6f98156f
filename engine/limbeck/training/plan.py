"""Which rows each micro-batch holds: a function of (data_seed, epoch), drawn from no global generator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from limbeck.data.sequence import TokenSequence


@dataclass(frozen=True)
class Plan:
    """The data order of a training.

    `units`: rows that stay together, each a tuple of indexes: single rows, or both rows of a preference pair. A
    micro-batch of all `world` processes takes `world · per_rank` units in the shuffled order of its epoch; process
    `rank` reads its share of them, which is empty where the last one of an epoch is short.
    """

    units: Sequence[tuple[int, ...]]
    per_rank: int
    seed: int
    world: int = 1
    rank: int = 0

    @classmethod
    def of(
        cls,
        sequences: Sequence[TokenSequence],
        batch_size: int,
        seed: int,
        *,
        pairs: bool = False,
        world: int = 1,
        rank: int = 0,
    ) -> Plan:
        """Plan `sequences` by micro-batches of `batch_size` rows; `pairs`: keep preference pairs together.

        A batch smaller than a pair holds one pair all the same.
        """
        units = _paired(sequences) if pairs else [(index,) for index in range(len(sequences))]
        widest = max((len(unit) for unit in units), default=1)
        return cls(units, max(1, batch_size // widest), seed, world, rank)

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return math.ceil(len(self.units) / (self.per_rank * self.world))

    def rows(self, epoch: int, number: int) -> list[int]:
        """Indexes of the rows in micro-batch `number` of `epoch`, for this process."""
        start = (number * self.world + self.rank) * self.per_rank
        units = _order(self.seed, epoch, len(self.units))[start : start + self.per_rank]
        return [index for unit in units for index in self.units[unit]]

    def steps_per_epoch(self, accumulation: int) -> int:
        """Optimizer steps of an epoch; the last one may accumulate fewer micro-batches."""
        return max(1, math.ceil(len(self) / accumulation))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    """The numbers below `count`, shuffled. Ranked by raw draws, which the bit generator alone fixes for good."""
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return [int(index) for index in np.argsort(draws, kind="stable")]


def _paired(sequences: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
    units: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        # Single rows get negative keys of their own.
        units.setdefault(sequence.pair if sequence.pair >= 0 else -1 - index, []).append(index)
    return [tuple(unit) for unit in units.values()]


class EpochSampler:
    """The batch sampler of a DataLoader: yields [(epoch, number)] for each micro-batch of the epoch in force."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self._epoch, number)] for number in range(len(self._plan))])
