"""Knobs of a run as clients see them, and what is wrong with values for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from limbeck.errors import Problem, nearest
from limbeck.recipe import Bounds, wanted
from limbeck.v1 import training_service_pb2 as pb

if TYPE_CHECKING:
    from limbeck.recipe import Recipe


def knobs_of(recipe: Recipe) -> list[pb.Knob]:
    """The knobs of a recipe with the values that a training begins with."""
    stored = wanted(recipe.losses).temperatures if recipe.signals.source == "cached" else None
    knobs = []
    for loss in recipe.losses:
        for field, begin in loss.knobs.items():
            bounds = loss.bounds[field]
            few = stored is not None and field == "temperature" and loss.needs.primitive == "top_k"
            number = isinstance(begin, int | float)
            knobs.append(
                pb.Knob(
                    name=f"losses.{loss.name}.{field}",
                    value=float(begin) if isinstance(begin, int | float) else None,
                    at_least=bounds.ge,
                    above=bounds.gt,
                    at_most=bounds.le,
                    below=bounds.lt,
                    values=stored if few else (),
                    scheduled=not number,
                )
            )
    return knobs


def faults(knobs: Sequence[pb.Knob], values: Mapping[str, float]) -> list[Problem]:
    """Everything that is wrong with values for knobs."""
    known = {knob.name: knob for knob in knobs}
    problems = []
    for name, value in values.items():
        knob = known.get(name)
        if knob is None:
            guess = nearest(name, list(known))
            hint = f"did you mean {guess}?" if guess else f"knobs of this run: {', '.join(known) or 'none'}"
            problems.append(Problem("this run has no such knob", field=name[:200], hint=hint))
        elif fault := _bounds(knob).fault(value):
            problems.append(Problem(f"{fault}, not {value:g}", field=name))
        elif knob.values and value not in knob.values:
            stored = ", ".join(f"{one:g}" for one in knob.values)
            message = f"temperature {value:g} is not stored; stored are {stored}"
            problems.append(Problem(message, field=name, hint="or train with `signals: {source: online}`"))
    return problems


def _bounds(knob: pb.Knob) -> Bounds:
    def bound(name: str) -> float | None:
        return getattr(knob, name) if knob.HasField(name) else None

    return Bounds(gt=bound("above"), ge=bound("at_least"), lt=bound("below"), le=bound("at_most"))
