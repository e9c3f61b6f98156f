"""`limbeck resume`: go on with a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("resume")
@click.argument("run_or_recipe", type=click.Path(path_type=Path))
@click.option("--allow-changed", is_flag=True, help="Go on as far as possible with a recipe that has changed.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout, everything else on stderr.")
def command(run_or_recipe: Path, allow_changed: bool, as_json: bool) -> None:
    """Go on with a run that was interrupted: RUN_OR_RECIPE is its folder, or its recipe.

    Refuses a recipe that has changed since, naming each difference. A project that was moved as a whole is the same.
    """
    from limbeck.cli.running import start
    from limbeck.plugins import load_plugins
    from limbeck.recipe import Recipe, load_recipe
    from limbeck.runs.folder import find_recipe, refuse_elsewhere

    registry = load_plugins()

    def load() -> Recipe:
        is_recipe = run_or_recipe.is_file() or run_or_recipe.suffix.lower() in (".yaml", ".yml")
        recipe = load_recipe(run_or_recipe if is_recipe else find_recipe(run_or_recipe), registry)
        if not is_recipe:
            refuse_elsewhere(run_or_recipe, recipe.path, recipe.output)
        return recipe

    start(load, registry, as_json=as_json, resume=True, allow_changed=allow_changed)
