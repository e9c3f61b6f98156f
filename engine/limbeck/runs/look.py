"""A look at a recipe file and all that it names: what `limbeck check` prints, and a server answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.runs.preflight import check

if TYPE_CHECKING:
    from limbeck.plugins import Registry
    from limbeck.recipe import Recipe


@dataclass(frozen=True)
class Look:
    """What was found. `error` holds every problem, of the recipe and of what it names; None where it can be run.

    `recipe` is None where nothing can be made of it. `facts` is JSON.
    """

    recipe: Recipe | None
    error: LimbeckError | None = None
    warnings: Sequence[Problem] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def look_at(file: Path, registry: Registry) -> Look:
    """Read a recipe, and check what it names, also where it has faults itself, as far as can be told what is meant."""
    from limbeck.recipe import read_recipe

    try:
        draft = read_recipe(file, registry)
    except LimbeckError as error:
        return Look(None, error)
    recipe = draft.recipe
    if recipe is None:
        return Look(None, draft.error)
    found = check(recipe, registry)
    found.put_first(Reason.RECIPE_INVALID, draft.problems)
    if draft.problems and len(found.problems) == len(draft.problems):
        return Look(recipe, draft.error)
    warnings = [] if draft.problems else [*found.warnings, *found.rows]  # they may come of what is left out
    try:
        found.raise_problems()
    except LimbeckError as error:
        return Look(recipe, error, warnings)
    return Look(recipe, None, warnings, found.facts)
