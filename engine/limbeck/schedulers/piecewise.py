"""`piecewise`: a step function of progress."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from limbeck.interfaces import Config
from limbeck.schedulers.stateless import Stateless

Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class PiecewiseConfig(Config):
    """Steps. A temperature over stored signals must be one of these (or a number), since each value is stored."""

    points: list[Point] = Field(
        min_length=1,
        description="[[progress, value], …]: from each progress on, that value, until the next. Progress goes from 0 "
        "to 1, starts at 0 and rises.",
    )

    @field_validator("points")
    @classmethod
    def _rising(cls, points: list[list[float]]) -> list[list[float]]:
        progress = [point[0] for point in points]
        if progress[0] != 0:
            raise ValueError(f"the first progress must be 0, not {progress[0]:g}")
        for before, after in pairwise(progress):
            if after <= before:
                raise ValueError(f"progress must rise, but {after:g} comes after {before:g}")
        if progress[-1] > 1:
            raise ValueError(f"progress goes from 0 to 1, not to {progress[-1]:g}")
        return points


class Piecewise(Stateless):
    """A step function, closed on the left: at a point's own progress its value is in force."""

    def __init__(self, config: PiecewiseConfig) -> None:
        self._progress = [float(point[0]) for point in config.points]
        self._values = [float(point[1]) for point in config.points]

    def value(self, progress: float, metrics: Mapping[str, float]) -> float:
        """The value of the last point at or before `progress`."""
        return self._values[max(0, bisect_right(self._progress, progress) - 1)]

    def values(self) -> Sequence[float]:
        """Every value, each once, in order of first use."""
        return list(dict.fromkeys(self._values))
