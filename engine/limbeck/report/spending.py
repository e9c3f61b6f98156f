"""What a teacher that is asked with text was asked and cost: the names of its figures, and words for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from limbeck.errors import counted

PREFIX = "teacher."  # of these names among the figures of a stage and the values of Metrics
COST = f"{PREFIX}cost."  # followed by the name of the money: teacher.cost.USD
EXPECTED = f"{PREFIX}expected."  # what it will have cost in the end: teacher.expected.USD
_ASIDES = {"retries": "tried again", "unmetered": "whose tokens are estimated", "lost": "lost to a crash"}
_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}


def figures_of(usage: Mapping[str, float], currency: str) -> dict[str, float]:
    """A teacher's usage under the names of events and reports: teacher.calls, teacher.cost.USD."""
    return {COST + currency if name == "cost" else PREFIX + name: float(value) for name, value in usage.items()}


def money(amount: float, currency: str) -> str:
    """`$0.012`, `$3.40`, `0.02 CHF`."""
    digits = 2 if not 0 < amount < 1 else 1 - math.floor(math.log10(amount))  # two that tell something
    text = f"{amount:,.{digits}f}"
    sign = _SIGNS.get(currency)
    return f"{sign}{text}" if sign else f"{text} {currency}"


def cost_of(figures: Mapping[str, float], prefix: str = COST) -> tuple[float, str] | None:
    """(amount, currency) among figures, None where no price is known."""
    return next(((value, name[len(prefix) :]) for name, value in figures.items() if name.startswith(prefix)), None)


def spending_text(figures: Mapping[str, float]) -> str | None:
    """`16 calls (3 answers from the cache), 1,200 tokens read, 340 written, $0.012 of about $0.40`.

    None where `figures` tell of no teacher.
    """
    return ", ".join(text for text in (counts_text(figures), cost_text(figures)) if text) or None


def cost_text(figures: Mapping[str, float]) -> str | None:
    """`$0.012 of about $0.40`, None where no price is known."""
    if (cost := cost_of(figures)) is None:
        return None
    expected = cost_of(figures, EXPECTED)
    return money(*cost) + (f" of about {money(*expected)}" if expected else "")


def counts_text(figures: Mapping[str, float]) -> str | None:
    """`16 calls (3 answers from the cache), 1,200 tokens read, 340 written`, None where they tell of no teacher."""
    known = {name.removeprefix(PREFIX): int(value) for name, value in figures.items() if name.startswith(PREFIX)}
    if "calls" not in known:
        return None
    more = [f"{counted(known['cached'], 'answers')} from the cache"] if known.get("cached") else []
    more += [f"{known[name]:,} {words}" for name, words in _ASIDES.items() if known.get(name)]
    parts = [counted(known["calls"], "calls") + (f" ({', '.join(more)})" if more else "")]
    parts.append(f"{counted(known.get('prompt_tokens', 0), 'tokens')} read")
    parts.append(f"{known.get('completion_tokens', 0):,} written")
    return ", ".join(parts)
