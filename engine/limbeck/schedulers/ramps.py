"""`linear` and `cosine`: from one value to another over a part of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from limbeck.interfaces import Config
from limbeck.schedulers.stateless import Stateless


class RampConfig(Config):
    """From `start` to `end` while progress goes from `begin` to `until`; flat before and after."""

    start: float = Field(description="Value up to progress `begin`.")
    end: float = Field(description="Value from progress `until` on.")
    begin: float = Field(0.0, ge=0, le=1, description="Progress at which the value begins to move, 0 to 1.")
    until: float = Field(1.0, ge=0, le=1, description="Progress at which `end` is reached, above `begin`.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.until:
            raise ValueError(f"begin ({self.begin:g}) must be below until ({self.until:g})")
        return self


class Ramp(Stateless):
    """What linear and cosine share: how far the way is gone."""

    def __init__(self, config: RampConfig) -> None:
        self._config = config

    def value(self, progress: float, metrics: Mapping[str, float]) -> float:
        """The value at `progress`; exactly `start` and `end` at the ends."""
        config = self._config
        done = (progress - config.begin) / (config.until - config.begin)
        if done <= 0:
            return float(config.start)
        if done >= 1:
            return float(config.end)
        part = self.part(done)
        return (1 - part) * config.start + part * config.end

    def part(self, done: float) -> float:
        """Share of the way from start to end, after the share `done` of the progress; both in [0, 1]."""
        raise NotImplementedError


class Linear(Ramp):
    """A straight line."""

    def part(self, done: float) -> float:
        """The same share."""
        return done


class Cosine(Ramp):
    """Half a period of a cosine: (1 − cos πx) / 2."""

    def part(self, done: float) -> float:
        """Slow, fast, slow."""
        return (1 - math.cos(math.pi * done)) / 2
