"""Looks at recipes that found nothing wrong, remembered for a short while: who makes a run mostly has just asked."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

KEPT_SECONDS = 300.0  # files that a recipe names may change: the run itself sees to them once more
MOST = 64


class Looks:
    """What recipes were found good, by their text."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, float] = OrderedDict()  # when, by sha256

    def note(self, recipe: str, *, good: bool) -> None:
        """What a look at a recipe has found just now."""
        key = _key(recipe)
        self._good.pop(key, None)
        if good:
            self._good[key] = time.monotonic()
        if len(self._good) > MOST:
            self._good.popitem(last=False)

    def good(self, recipe: str) -> bool:
        """Whether the latest look at a recipe was a short while ago, and found nothing wrong."""
        found = self._good.get(_key(recipe))
        return found is not None and time.monotonic() - found < KEPT_SECONDS


def _key(recipe: str) -> bytes:
    return hashlib.sha256(recipe.encode()).digest()
