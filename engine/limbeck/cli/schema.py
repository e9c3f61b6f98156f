"""`limbeck schema`."""

from __future__ import annotations

import click

from limbeck.cli import output


@click.command("schema")
@click.option("--json", "as_json", is_flag=True, help="Accepted like everywhere: the output is JSON in any case.")
def command(as_json: bool) -> None:
    """Print the JSON Schema of a recipe with all installed plugins.

    \b
      limbeck schema > limbeck.schema.json

    As the first line of a recipe, this makes an editor with the YAML language server complete and check it:

    \b
      # yaml-language-server: $schema=limbeck.schema.json
    """
    from limbeck.plugins import load_plugins
    from limbeck.recipe.json_schema import recipe_schema

    with output.machine_output():
        output.emit_json(recipe_schema(load_plugins()))
