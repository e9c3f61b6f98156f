"""What became of the rows that a generator made: kept, rejected by reason, cut, and what the teacher's answers cost."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from limbeck.errors import counted
from limbeck.report.evaluation import Part
from limbeck.report.spending import PREFIX, cost_of, spending_text

REJECTED = "rejected."  # followed by the reason, among the figures of the stage generate


class Rows(Part):
    """The rows of the stage generate. What a teacher on token ids took is null: it is not paid for."""

    made: int = Field(description="Rows that are trained on, or held out.")
    rejected: dict[str, int] = Field(description="Answers kept apart, by reason, e.g. refused, content_filter, failed.")
    truncated: int = Field(description="Rows whose answer was cut at max_new_tokens: their end token is not trained.")
    calls: int | None = Field(None, description="Calls of the teacher's service, over all attempts.")
    cached: int | None = Field(None, description="Answers that the teacher had kept, and that cost no call.")
    prompt_tokens: int | None = Field(None, description="Tokens that the service read.")
    completion_tokens: int | None = Field(None, description="Tokens that the service wrote.")
    cost: float | None = Field(None, description="What the calls cost, in `currency`; null where no price is known.")
    currency: str | None = None
    text: str = Field(description="The same for people.")


def rows_of(figures: Mapping[str, float]) -> Rows:
    """The rows by the figures of the stage generate."""
    rejected = {name[len(REJECTED) :]: int(value) for name, value in figures.items() if name.startswith(REJECTED)}
    made, truncated = int(figures.get("rows", 0)), int(figures.get("truncated", 0))
    cost = cost_of(figures)
    asked = ("calls", "cached", "prompt_tokens", "completion_tokens")
    known = {name: int(figures[PREFIX + name]) for name in asked if PREFIX + name in figures}
    return Rows(
        made=made,
        rejected=rejected,
        truncated=truncated,
        **known,
        cost=cost[0] if cost else None,
        currency=cost[1] if cost else None,
        text=_text(made, rejected, truncated, spending_text(figures)),
    )


def plain_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of a stage without those that are told in words."""
    return {name: value for name, value in figures.items() if not name.startswith((REJECTED, PREFIX))}


def _text(made: int, rejected: Mapping[str, int], truncated: int, spent: str | None) -> str:
    text = f"{counted(made, 'rows')} {'was' if made == 1 else 'were'} made"
    if truncated:
        text += f", {truncated:,} of them cut at max_new_tokens (their end is not trained)"
    if rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items()))
        text += f"; {counted(sum(rejected.values()), 'answers')} kept apart: {reasons}"
    return f"{text}. The teacher: {spent}." if spent else f"{text}."
