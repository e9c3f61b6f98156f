"""The scheduler `sawtooth`: a step function, so that it may also schedule a temperature over stored signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from limbeck.interfaces import Config


class SawtoothConfig(Config):
    """From `low` to `high` in `steps` equal steps, `teeth` times in the training."""

    low: float = Field(description="Value at the start of a tooth.")
    high: float = Field(description="Value at the end of a tooth; above `low`.")
    steps: int = Field(4, ge=2, description="Different values of a tooth.")
    teeth: int = Field(2, ge=1, description="Teeth in the whole training.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high:g}) must be above low ({self.low:g})")
        return self


class Sawtooth:
    """A function of progress alone: no state."""

    def __init__(self, config: SawtoothConfig) -> None:
        rise = (config.high - config.low) / (config.steps - 1)
        self._values = [config.low + step * rise for step in range(config.steps)]
        self._teeth = config.teeth

    def value(self, progress: float, metrics: Mapping[str, float]) -> float:
        """The value at `progress`; the last tooth keeps its top at 1."""
        if progress >= 1:
            return self._values[-1]
        return self._values[int(progress * self._teeth % 1 * len(self._values))]

    def values(self) -> Sequence[float]:
        """Every value of a tooth."""
        return self._values

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
