"""`limbeck audit`: what a signal costs and loses, on rows of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output
from limbeck.errors import LimbeckError, Problem, Reason

if TYPE_CHECKING:
    from limbeck.interfaces import Teacher
    from limbeck.plugins import Registry
    from limbeck.recipe import Recipe


@click.command("audit")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--server", metavar="ADDRESS", help="Ask this Limbeck server, not the recipe's own teacher.")
@click.option("--teacher", metavar="NAME", help="The teacher's name at the server.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token for the server.")
@click.option(
    "--tls-ca", type=click.Path(path_type=Path), help="File with the certificate that the server is known by."
)
@click.option("--rows", default=8, show_default=True, type=click.IntRange(1), help="Training rows to measure on.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, everything else on stderr.")
def command(
    recipe: Path,
    server: str | None,
    teacher: str | None,
    token_file: Path | None,
    tls_ca: Path | None,
    rows: int,
    as_json: bool,
) -> None:
    """Measure what RECIPE's losses lose by a signal, and what the signal costs.

    Takes the first training rows, the student before its first step, and the losses that read a top k. Loss and
    gradient by the teacher's whole vocabulary are the truth; against them stand hidden states and supports of several
    k, as they come over the wire. Of each error the part that the codec's rounding makes is told beside it; the rest
    is that of k. The gradient is that of the student's last hidden states.
    """
    from rich.console import Console
    from rich.progress import Progress

    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe
    from limbeck.runs.audit import audit_recipe
    from limbeck.runs.libraries import prepare_libraries

    prepare_libraries()
    registry = load_plugins()
    loaded = load_recipe(recipe, registry)
    asked = _teacher(loaded, registry, server, teacher, token_file, tls_ca)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokens", total=None)
        found = audit_recipe(loaded, asked, rows, lambda tokens: bar.advance(task, tokens))
    lines = [vars(line) for line in found.lines]
    if as_json:
        output.emit_json({"rows": found.rows, "tokens": found.tokens, "lines": lines})
        return
    click.echo(f"{found.rows} rows, {found.tokens:,} tokens; relative errors against the whole vocabulary, in float64")
    names = ("signal", "bytes/token", "loss", "loss error", "by codec", "gradient error", "by codec")
    for cells in (names, *map(_cells, lines)):
        click.echo(f"{cells[0]:<20}{cells[1]:>12}" + "".join(f"{cell:>15}" for cell in cells[2:]))


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    from limbeck.report.numbers import MISSING

    cost = MISSING if line["bytes"] is None else f"{line['bytes']:,.0f}"
    errors = ("loss_error", "loss_by_codec", "gradient_error", "gradient_by_codec")
    return line["signal"], cost, f"{line['loss']:.6g}", *(f"{line[name]:.2e}" for name in errors)


def _teacher(
    recipe: Recipe,
    registry: Registry,
    server: str | None,
    name: str | None,
    token_file: Path | None,
    tls_ca: Path | None,
) -> Teacher:
    from limbeck.interfaces import TextTeacher
    from limbeck.recipe import Bound

    if server is None:
        if name or token_file or tls_ca:
            raise click.UsageError("--teacher, --token-file and --tls-ca go with --server")
        if recipe.teacher is None:
            problem = Problem("there is no teacher", str(recipe.path), field="teacher", hint="add it, or give --server")
            raise LimbeckError(Reason.RECIPE_INVALID, problems=[problem])
        made = recipe.teacher.make()
        if isinstance(made, TextTeacher):
            message = f"{recipe.teacher.name} answers with text: it gives no signals that could be measured"
            hint = "give --server with a teacher on token ids"
            problem = Problem(message, str(recipe.path), field="teacher", hint=hint)
            raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
        own: Teacher = made
        return own
    if name is None:
        raise click.UsageError("--server wants --teacher NAME")
    entry = registry.entry("teacher", "limbeck")
    options: dict[str, Any] = {"address": server, "teacher": name}
    options |= {key: str(path) for key, path in (("token_file", token_file), ("tls_ca", tls_ca)) if path is not None}
    remote: Teacher = Bound(entry, entry.plugin.config.model_validate(options), "teacher").make()
    return remote
