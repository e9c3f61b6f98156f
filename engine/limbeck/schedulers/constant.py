"""`constant`: one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from limbeck.interfaces import Config
from limbeck.schedulers.stateless import Stateless


class ConstantConfig(Config):
    """One value from start to end: the same as writing the number itself."""

    value: float = Field(description="The value.")


class Constant(Stateless):
    """One value."""

    def __init__(self, config: ConstantConfig) -> None:
        self._value = float(config.value)

    def value(self, progress: float, metrics: Mapping[str, float]) -> float:
        """The value, whatever the progress."""
        return self._value

    def values(self) -> Sequence[float]:
        """The one value."""
        return [self._value]
