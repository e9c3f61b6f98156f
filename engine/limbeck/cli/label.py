"""`limbeck label`: the signals of a recipe's rows, without training."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("label")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout, everything else on stderr.")
def command(recipe: Path, as_json: bool) -> None:
    """Capture the teacher's signals of RECIPE's rows: generate, prepare and label, and nothing more.

    Give the same command again after a crash: no position is scored twice, and the shards are the same bytes as those
    of a capture that was never stopped. A damaged shard is found, and it alone is scored again. `limbeck run` goes on
    from there, and `limbeck serve --signals NAME=FOLDER` sends the signals to trainers elsewhere.
    """
    from limbeck.cli.running import start
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe

    registry = load_plugins()
    start(lambda: load_recipe(recipe, registry), registry, as_json=as_json, until="label")
