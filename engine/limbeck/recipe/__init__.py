"""Recipes: schema, loading, errors with their place."""

from limbeck.recipe.bound import Bound, BoundLoss, Bounds
from limbeck.recipe.load import Draft, Recipe, load_recipe, read_recipe
from limbeck.recipe.paths import PathUse
from limbeck.recipe.rules import wanted
from limbeck.recipe.schema import DataSpec, EvaluationSpec, RationaleSpec, RecipeFile, SignalsSpec, StudentSpec
from limbeck.recipe.training import TrainingSpec

__all__ = [
    "Bound",
    "BoundLoss",
    "Bounds",
    "DataSpec",
    "Draft",
    "EvaluationSpec",
    "PathUse",
    "RationaleSpec",
    "Recipe",
    "RecipeFile",
    "SignalsSpec",
    "StudentSpec",
    "TrainingSpec",
    "load_recipe",
    "read_recipe",
    "wanted",
]
