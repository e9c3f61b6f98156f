"""What `run` and `resume` share: signals, the display, the summary at the end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output
from limbeck.cli.progress import Display, make_display
from limbeck.errors import EXIT_SIGINT, LimbeckError
from limbeck.runs.libraries import prepare_libraries
from limbeck.runs.pipeline import run_recipe
from limbeck.runs.stage import Interrupted
from limbeck.runs.stopping import EXIT_CODES, StopSignal

if TYPE_CHECKING:
    from limbeck.plugins import Registry
    from limbeck.recipe import Recipe

GONE = "SIGPIPE"  # nobody reads the events any more


def start(
    load: Callable[[], Recipe],
    registry: Registry,
    *,
    as_json: bool,
    resume: bool = False,
    allow_changed: bool = False,
    until: str | None = None,
) -> None:
    """Run a recipe to its end, or with the stage `until`, and print where its output is.

    Leaves with the documented exit code otherwise.
    """
    prepare_libraries()
    try:
        recipe = load()
        with StopSignal() as signals, make_display(as_json=as_json) as display:
            folder = run_recipe(
                recipe,
                registry,
                display=display,
                stop=lambda: signals() or (GONE if display.gone else None),
                resume=resume,
                allow_changed=allow_changed,
                until=until,
            )
    except Interrupted as interrupted:
        sys.exit(_interrupted(interrupted.signal, recipe, display, as_json))
    except KeyboardInterrupt:
        sys.exit(_interrupted("SIGINT", recipe, display, as_json))
    except LimbeckError as error:
        if not as_json:
            raise
        output.emit_json(output.error_json(error), line=True)
        sys.exit(error.exit_code)
    if display.gone:
        raise BrokenPipeError
    places = _places(folder) if until is None else _captured(folder)
    if as_json:
        output.emit_json({"result": places}, line=True)
    elif until is None:
        _summary(folder)
    else:
        click.echo(f"\nrun      {_short(folder)}")
        for name in ("train", "holdout"):
            if name in places:
                click.echo(f"{name:<9}{_short(Path(places[name]))}, {places[f'{name}_sequences']:,} sequences")
        if "train" not in places:
            click.echo("train    nothing: signals.source is online, or no loss reads a teacher's top_k or target")


def _interrupted(signal: str, recipe: Recipe, display: Display, as_json: bool) -> int:
    if signal == GONE:
        raise BrokenPipeError
    command = f"limbeck resume {shlex.quote(_short(recipe.path))}"
    text = f"stopped by {signal}; what was done is saved. To go on:\n  {command}"
    click.echo(text, err=True)
    if as_json and not display.gone:
        output.emit_json({"interrupted": {"signal": signal, "resume": command}}, line=True)
    return EXIT_CODES.get(signal, EXIT_SIGINT)


def _places(folder: Path) -> dict[str, str]:
    return {
        "run": str(folder),
        "student": str(folder / "student"),
        "report": str(folder / "report" / "index.html"),
        "figures": str(folder / "report" / "report.json"),
    }


def _captured(folder: Path) -> dict[str, Any]:
    """Where the signals are, and how many sequences they are of."""
    from limbeck.signals import SignalStore

    stores = {path.name: path for path in sorted((folder / "signals").iterdir())}
    counts = {f"{name}_sequences": len(SignalStore(path).indexes) for name, path in stores.items()}
    return {"run": str(folder), **{name: str(path) for name, path in stores.items()}, **counts}


def _short(path: Path) -> str:
    """The path as a person here would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _summary(folder: Path) -> None:
    from limbeck.report.figures import read_figures

    report = read_figures(folder)
    click.echo("")
    for line in table(report.evaluation.models if report.evaluation else {}):
        click.echo(line)
    click.echo(f"\n{report.verdict.text}")
    if report.rows is not None and report.rows.calls is not None:
        click.echo(f"rows     {report.rows.text}")
    click.echo(f"student  {_short(folder / 'student')}")
    click.echo(f"report   {_short(folder / 'report' / 'index.html')}")


def table(models: Any) -> list[str]:
    """The comparison as aligned text, one line a model."""
    from limbeck.report.columns import columns

    shown = columns(models.values())
    rows = [["", *(column.brief for column in shown)]]
    for name in ("teacher", "untrained", "twin", "student"):
        if name in models:
            rows.append([name, *(column.form(column.value(models[name])) for column in shown)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
