"""What differs between the recipe of a run and the one that is to go on with it."""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.recipe.resolved import load_yaml
from limbeck.runs.folder import read_identity

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

ABSENT = "(not there)"


def refuse_changes(recipe: Recipe, *, allow_changed: bool) -> None:
    """Raise RESUME_REFUSED where there is no run in the recipe's output, or where it was started by another recipe."""
    resolved, identity = recipe.output / "resolved.yaml", read_identity(recipe.output)
    if identity is None or not resolved.is_file():
        hint = f"start it: limbeck run {recipe.path}"
        problem = Problem("there is no run to resume here", file=str(recipe.output), hint=hint)
        raise LimbeckError(Reason.RESUME_REFUSED, problems=[problem])
    if allow_changed:
        return
    before = _relative(load_yaml(resolved.read_text("utf-8")), Path(identity.recipe_absolute).parent)
    now = _relative(recipe.resolved(), recipe.path.parent)
    found = differences(before, now)
    if found:
        hint = "`limbeck run` makes anew what the change concerns; --allow-changed goes on as far as it can"
        problems = [Problem(f"was {old}, is {new}", file=str(recipe.path), field=name) for name, old, new in found]
        message = f"The recipe has changed since the run was started ({hint})."
        raise LimbeckError(Reason.RESUME_REFUSED, message, problems)


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, str, str]]:
    """(field, before, now) for each leaf that differs between two JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        pairs = [(f"{name}.{key}".lstrip("."), before.get(key, ABSENT), now.get(key, ABSENT)) for key in keys]
    elif (
        isinstance(before, list) and isinstance(now, list) and any(isinstance(v, dict | list) for v in [*before, *now])
    ):
        count = max(len(before), len(now))
        longer = [[*values, *[ABSENT] * (count - len(values))] for values in (before, now)]
        pairs = [(f"{name}[{i}]", longer[0][i], longer[1][i]) for i in range(count)]
    else:
        return [] if before == now else [(name, *_shown(before, now))]
    return [found for field, old, new in pairs for found in differences(old, new, field)]


def _shown(before: Any, now: Any) -> tuple[str, str]:
    """Two values in a line; of texts of many lines, the first line that differs."""
    old, new = str(before), str(now)
    for one, other in zip_longest(old.splitlines(), new.splitlines(), fillvalue=ABSENT):
        if one != other:
            return one, other
    return old, new


def _relative(value: Any, recipe_folder: Path) -> Any:
    """The value with absolute paths relative to the recipe, so that a project that moved as a whole is the same."""
    if isinstance(value, dict):
        return {key: _relative(item, recipe_folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, recipe_folder) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.relpath(value, recipe_folder)
    return value
