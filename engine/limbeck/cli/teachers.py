"""`limbeck teachers compare`: the candidates of a recipe on its own held-out rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output

if TYPE_CHECKING:
    from limbeck.runs.ranking import Comparison, Line, Measured

REST = "remarks"
NARROWEST, WIDEST = 88, 100  # columns of the tables
HUGE = 1e5  # a perplexity from here on is told as 762.4 M
NOTICE = b"\nstopping; Ctrl-C again stops at once\n"
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, everything else on stderr.")


@click.group("teachers")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Choose among the teachers of a recipe."""
    ctx.obj = as_json


@command.command("compare", short_help="Rank the teachers of a recipe on its held-out rows.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1), help="Held-out rows to compare on.")
@json_option
@click.pass_context
def compare(ctx: click.Context, recipe: Path, rows: int, as_json: bool) -> None:
    """Compare the teachers of RECIPE, and its student, on its own held-out rows.

    Each is asked for greedy answers, and how likely it holds the reference answers, one in memory at a time. Teachers
    are ranked, with 95 % intervals by a bootstrap over the rows; a warning tells of those that do not beat the student.
    Writes nothing. Teachers of a service are paid for.
    """
    from limbeck.plugins import load_plugins
    from limbeck.recipe import load_recipe
    from limbeck.runs.compare import compare as contest
    from limbeck.runs.libraries import prepare_libraries
    from limbeck.runs.ranking import judge
    from limbeck.runs.stage import Interrupted
    from limbeck.runs.stopping import EXIT_CODES, StopSignal

    prepare_libraries()
    loaded = load_recipe(recipe, load_plugins(), undecided=True)
    try:
        with StopSignal(NOTICE) as signals, _progress() as told:
            found = judge(contest(loaded, rows, stop=signals, told=told))
    except Interrupted as interrupted:
        click.echo(f"stopped by {interrupted.signal}; nothing was written", err=True)
        sys.exit(EXIT_CODES[interrupted.signal])
    if as_json or ctx.obj:
        output.emit_json(asdict(found))
    else:
        _print(found)


@contextmanager
def _progress() -> Iterator[Callable[[str, str, int, int], None]]:
    """A bar on a terminal, one line a contestant and part elsewhere; both on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = output.console(stderr=True)
    if not console.is_terminal:
        seen: set[tuple[str, str]] = set()

        def tell(name: str, what: str, done: int, total: int) -> None:
            if (name, what) not in seen:
                seen.add((name, what))
                click.echo(f"{name}: {what}{f', {total:,}' if total else ''}", err=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:

        def show(name: str, what: str, done: int, total: int) -> None:
            text = f"{name}: {what}"
            if [task.description for task in bar.tasks] != [text]:
                for task in bar.task_ids:
                    bar.remove_task(task)
                bar.add_task(text, total=total or None)
            bar.update(bar.task_ids[0], completed=done)

        yield show


def _print(found: Comparison) -> None:
    console = output.console()
    references = f"{found.references} with a reference answer" if found.references else "none with a reference answer"
    click.echo(f"{found.rows} of {found.held_out:,} held-out rows, {references}; greedy, at most ", nl=False)
    click.echo(f"{found.max_new_tokens} new tokens, asked {found.asked_at_once} at a time\n")
    width = max(NARROWEST, min(WIDEST, console.width))  # a narrower terminal folds lines, and loses nothing
    good = [line for line in found.lines if line.failed is None]
    known = any(line.bits_per_byte is not None or line.f1 is not None for line in good)
    for table in ([_quality(good)] if known else []) + [_expense(good)]:
        console.print(table, width=width, soft_wrap=False, crop=False)
    for line in found.lines:
        if line.failed is not None:
            click.echo(f"{line.name} could not be compared: {line.failed['message']} [{line.failed['reason']}]")
            for problem in line.failed["problems"]:
                click.echo(f"  {problem}")
    click.echo(f"Ranked by {found.rule}." + (" In brackets: 95 % of a bootstrap over the rows." if known else ""))
    if any(line.picked for line in good):
        click.echo("* the teacher of the recipe")
    click.echo("")
    click.echo(found.verdict)
    for warning in found.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}: {warning}")


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        text = place == 1 or name == REST  # numbers keep their width, texts are folded
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    table.columns[1].min_width = 10
    return table


def _quality(lines: list[Line]) -> Any:
    from limbeck.report.numbers import count, short

    table = _table("", "", "bits/byte", "", "perplexity", "F1", "", "exact")
    for line in lines:
        bound = "" if line.exact else "≥ "
        bits, f1 = line.bits_per_byte, line.f1
        exact = None if line.exact_match is None else line.exact_match.value
        perplexity = (count if (line.perplexity or 0) >= HUGE else short)(line.perplexity)
        table.add_row(
            *_who(line),
            *_measured(bits, bound),
            f"{bound}{perplexity}" if line.perplexity is not None else perplexity,
            *_measured(f1, digits=2),
            short(exact),
        )
    return table


def _expense(lines: list[Line]) -> Any:
    from limbeck.report.numbers import MISSING, short
    from limbeck.report.spending import money

    table = _table("", "", "tokens in", "out", "cost", "s/answer (p50, p95)", "tok/s", REST)
    for line in lines:
        counts = {"cut": line.truncated, **line.rejected}
        rest = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in counts.items() if count)
        cost = MISSING if line.cost is None else money(line.cost, line.currency or "")
        tokens = (MISSING if count is None else f"{count:,}" for count in (line.tokens_read, line.tokens_written))
        seconds = (line.seconds_mean, line.seconds_p50, line.seconds_p95)
        mean, middle, slow = (short(value, 2) for value in seconds)
        times = MISSING if line.seconds_mean is None else f"{mean} ({middle}, {slow})"
        table.add_row(*_who(line), *tokens, cost, times, short(line.tokens_per_second), rest)
    return table


def _who(line: Line) -> tuple[str, str]:
    from rich.markup import escape

    return "" if line.rank is None else str(line.rank), escape(line.name) + (" *" if line.picked else "")


def _measured(value: Measured | None, bound: str = "", digits: int = 3) -> tuple[str, str]:
    from limbeck.report.numbers import MISSING, short
    from limbeck.runs.ranking import between

    if value is None:
        return MISSING, ""
    return f"{bound}{short(value.value)}", between(value.interval, digits).strip()
