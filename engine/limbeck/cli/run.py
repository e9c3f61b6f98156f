"""`limbeck run`: from a recipe to its report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout, everything else on stderr.")
def command(recipe: Path, as_json: bool) -> None:
    """Distil by RECIPE: generate, prepare, label, train, evaluate, report.

    What is done already is not done again: the same command goes on after a crash, and makes anew what a changed
    recipe concerns. Ctrl-C and SIGTERM save what is needed to go on.
    """
    from limbeck.cli.running import start
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe

    registry = load_plugins()
    start(lambda: load_recipe(recipe, registry), registry, as_json=as_json)
