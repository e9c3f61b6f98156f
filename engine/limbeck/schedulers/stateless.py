"""What the built-in schedulers share: they are functions of progress alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Stateless:
    """A scheduler without state, whose values are not a finite list unless it says so."""

    def values(self) -> Sequence[float] | None:
        """Every value that it can take, None where these are not finitely many."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the value follows from progress."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""
