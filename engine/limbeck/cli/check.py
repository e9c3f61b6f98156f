"""`limbeck check`: the pre-flight of a recipe, and the recipe with every default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output

if TYPE_CHECKING:
    from limbeck.errors import Problem

_BYTES = ("memory", "disk")  # facts that are bytes throughout


@click.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, everything else on stderr.")
def command(recipe: Path, as_json: bool) -> None:
    """Look at RECIPE and all that it names: files, rows, tokenizers, teacher, knobs, folder, disk, memory.

    Spends nothing: no weights are loaded, nothing is written. Prints the recipe with every default and absolute paths,
    and what it found; or else all problems in one go, with exit code 2 or 3.
    """
    from limbeck.plugins import load_plugins
    from limbeck.recipe.resolved import dump_yaml
    from limbeck.runs.libraries import prepare_libraries
    from limbeck.runs.look import look_at

    prepare_libraries()
    found = look_at(recipe, load_plugins())
    if found.error is not None:
        if not as_json:
            _warn(found.warnings, err=True)
        raise found.error
    loaded = found.recipe
    assert loaded is not None, "what has no fault is a recipe"
    if as_json:
        told = [_filled(problem) for problem in found.warnings]
        output.emit_json({"recipe": loaded.resolved(), "facts": found.facts, "warnings": told})
        return
    click.echo(f"# {loaded.path}, with every default and absolute paths")
    click.echo(dump_yaml(loaded.resolved()).rstrip())
    click.echo("")
    for name, facts in found.facts.items():
        click.echo(f"{name}: {_sizes(facts) if name in _BYTES else _line(facts)}")
    _warn(found.warnings)
    click.echo(f"ready: limbeck run {recipe}")


def _warn(warnings: Sequence[Problem], *, err: bool = False) -> None:
    for problem in warnings:
        click.echo(f"warning: {problem}", err=err)


def _sizes(facts: dict[str, float]) -> str:
    """Bytes for people; what is 0 is not known yet."""
    from limbeck.report.numbers import size

    return ", ".join(f"{name.removesuffix('_bytes')} {size(value)}" for name, value in facts.items() if value)


def _filled(problem: Problem) -> dict[str, Any]:
    return {name: value for name, value in asdict(problem).items() if value is not None}


def _line(facts: Any) -> str:
    if isinstance(facts, dict):
        return ", ".join(f"{name} {_line(value)}" for name, value in facts.items() if value is not None)
    if isinstance(facts, list | tuple):
        return "[" + ", ".join(_line(item) for item in facts) + "]"
    if isinstance(facts, bool) or facts is None:
        return {True: "yes", False: "no", None: "none"}[facts]
    if isinstance(facts, int | float):
        return f"{facts:,.10g}" if abs(facts) < 1e15 else str(facts)
    return str(facts)[:12] if len(str(facts)) == 64 else str(facts)
