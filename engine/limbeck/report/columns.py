"""The columns of the comparison table, for the page, the model card and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from limbeck.report import numbers
from limbeck.report.evaluation import ModelFigures


@dataclass(frozen=True)
class Column:
    """A figure of a model. `brief`: its heading in a terminal; `better`: which is best, None for neither."""

    field: str
    title: str
    brief: str
    form: Callable[[float | None], str]
    better: Literal["low", "high"] | None = None
    optional: bool = False

    def value(self, model: ModelFigures) -> float | None:
        """The figure."""
        found: float | None = getattr(model, self.field)
        return found

    def best(self, models: Collection[ModelFigures]) -> float | None:
        """The best figure of `models`, None where none has it or there is no better."""
        known = [value for model in models if (value := self.value(model)) is not None]
        if self.better is None or not known:
            return None
        return min(known) if self.better == "low" else max(known)


COLUMNS = (
    Column("parameters", "Parameters", "parameters", numbers.count),
    Column("bytes", "Size of weights", "bytes", numbers.size),
    Column("tokens_per_second", "Tokens a second", "tokens/s", numbers.short),
    Column("perplexity", "Perplexity", "perplexity", numbers.short, "low"),
    Column("forward_kl", "KL to the teacher, nats", "KL to teacher", numbers.short, "low", True),
    Column("top1_agreement", "Top-1 agreement", "top-1", numbers.percent, "high", True),
    Column("preference_accuracy", "Favours the chosen text", "favours chosen", numbers.percent, "high", True),
    Column("preference_margin", "Its margin, nats", "margin", numbers.short, "high", True),
)


def columns(models: Collection[ModelFigures]) -> list[Column]:
    """Those that apply to `models`: closeness to a teacher, and preferences, only where a model has them."""
    return [c for c in COLUMNS if not c.optional or any(c.value(model) is not None for model in models)]
