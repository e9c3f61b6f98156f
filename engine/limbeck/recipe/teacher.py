"""A teacher's mapping of a recipe in a file of its own, as a server reads it."""

from __future__ import annotations

from pathlib import Path

from limbeck.errors import LimbeckError, Reason
from limbeck.plugins import Registry
from limbeck.recipe.binding import Binder
from limbeck.recipe.bound import Bound
from limbeck.recipe.document import read_document
from limbeck.recipe.paths import missing
from limbeck.recipe.problems import show


def load_teacher(path: Path, registry: Registry) -> Bound:
    """Load a file that holds a teacher's mapping of a recipe: `plugin:` and its config.

    Relative paths are relative to the folder of the file. Raises RECIPE_INVALID with every problem, those of missing
    paths too, each with its place.
    """
    file = Path(path).resolve()
    message = f"{file.name} is not a valid teacher."
    try:
        document = read_document(file, must_have="plugin:")
    except LimbeckError as error:
        raise LimbeckError(Reason.RECIPE_INVALID, message, error.problems) from None
    binder = Binder(document, registry)
    teacher = None
    if "plugin" not in document.value and isinstance(document.value.get("teacher"), dict):
        hint = "give a file that holds only what stands below teacher:, so that plugin: is at its top"
        binder.problems.append(document.problem(("teacher",), "this is a recipe, not a teacher", hint, key=True))
    elif not isinstance(document.value.get("plugin", ""), str):
        binder.problems.append(document.problem(("plugin",), f"must be text, not {show(document.value['plugin'])}"))
    else:
        teacher = binder.bind("teacher", ())
    problems = [*document.problems, *binder.problems, *missing(file, tuple(binder.resolver.uses))]
    if problems or teacher is None:
        problems = sorted(dict.fromkeys(problems), key=lambda one: (one.line or 0, one.column or 0))
        raise LimbeckError(Reason.RECIPE_INVALID, message, problems)
    return teacher
