"""What a teacher's calls came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as a service counts them."""

    read: int
    written: int


@dataclass
class Tally:
    """Counts since the teacher was made. `read` and `written` are tokens, `money` that of the prices.

    `calls` were sent, `retries` of them because one before failed; `cached` prompts needed none. `waited`: seconds that
    the service had all calls wait. `unmetered`: calls whose tokens it did not tell, counted at the most they may be.
    `lost`: calls that a killed process left under way.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    read: int = 0
    written: int = 0
    money: float = 0.0
    waited: float = 0.0
    unmetered: int = 0
    lost: int = 0
