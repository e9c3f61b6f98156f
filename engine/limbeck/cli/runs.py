"""`limbeck runs`: start, watch and steer runs of a server from anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from limbeck.cli import output
from limbeck.cli.server import Server, find, knob_values, server_options
from limbeck.errors import EXIT_FAILED, EXIT_OK, EXIT_SIGINT, LimbeckError, Reason

if TYPE_CHECKING:
    from limbeck.client import Client, Event, Run, RunState
    from limbeck.client.records import RestartPolicy

HELP = """Start, watch and steer runs of a Limbeck server.

The server is `limbeck serve --workspace DIR`. Runs outlive this command, its connection and the server.

\b
  limbeck runs create recipe.yaml --watch              start a run and follow it
  limbeck runs list --server gpu7:7411                 what a server has
  limbeck runs watch 3fa8                              the beginning of an id is enough
  limbeck runs set 3fa8 forward_kl.weight=0.5          from the next step on
  limbeck runs pause 3fa8; limbeck runs resume 3fa8    free the machine, go on later
  limbeck runs fetch 3fa8 --to here                    the student, checked

LIMBECK_SERVER=gpu7:7411 in the environment saves typing --server, LIMBECK_TOKEN_FILE --token-file.
"""


class _Ordered(click.Group):
    """Lists its commands in the order that a person uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they stand below."""
        return list(self.commands)


@click.group("runs", cls=_Ordered, help=HELP, no_args_is_help=True)
def command() -> None:
    """Nothing of its own."""


# -------------------------------------------------------------------------------------------------------------- start


@command.command("create", short_help="Start a run of a recipe, a file here.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--watch", "follow", is_flag=True, help="Follow it to its end, as `limbeck runs watch`.")
@click.option(
    "--restart",
    type=click.Choice(["resume", "fail"]),
    default="resume",
    show_default=True,
    help="What becomes of it where the server crashes meanwhile.",
)
@click.option("--request-id", metavar="TEXT", help="Your own name of this request: the same one starts no second run.")
@server_options
def create(
    server: Server, recipe: Path, follow: bool, restart: RestartPolicy, request_id: str | None, as_json: bool
) -> None:
    """Start a run of RECIPE, a file here, as soon as the server has room.

    The server first looks at the recipe and all that it names; problems are told with their place in your file.
    Relative paths in it are relative to the server's workspace, `output` is the run's folder there.

    \b
      limbeck runs create recipe.yaml
      limbeck runs create recipe.yaml --server gpu7:7411 --token-file token --watch
    """
    from limbeck.cli.runs_text import record_json

    with server.connect() as client:
        with output.console(stderr=True).status("the server looks at the recipe"):
            found = client.validate(recipe)
        for warning in found.warnings:
            click.echo(f"warning: {warning}", err=True)
        if found.error is not None:
            raise found.error
        run = client.create_run(recipe, request_id, restart)
        if as_json:
            output.emit_json({"run": record_json(run)}, line=follow)
        else:
            click.echo(f"run {run.run_id}: {run.state}")
            click.echo(f"its folder in the server's workspace: {run.output}")
        if follow:
            sys.exit(_follow(server, client, run.run_id, None, as_json, recipe=recipe))
    if not as_json:
        click.echo(f"to watch it:  {server.command('watch', run.run_id)}")


# --------------------------------------------------------------------------------------------------------------- look


@command.command("list", short_help="List the runs of a server, the newest first.")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only runs in this state; may be repeated.")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="Runs at most; 0 for all.")
@server_options
def list_(server: Server, states: tuple[Any, ...], limit: int, as_json: bool) -> None:
    """List the runs of a server, the newest first.

    \b
      limbeck runs list
      limbeck runs list --state training --state queued --json
    """
    from itertools import islice

    from limbeck.cli.runs_text import record_json, runs_table

    with server.connect() as client:
        found = list(islice(client.runs(states), limit + 1 if limit else None))
    more, found = bool(limit) and len(found) > limit, found[: limit or None]
    if as_json:
        output.emit_json({"runs": [record_json(run) for run in found], "more": more})
        return
    if not found:
        click.echo(f"no runs; to start one:  {server.command('create', 'recipe.yaml')}")
        return
    output.console().print(runs_table(found))
    if more:
        click.echo("there are older ones: --limit 0 shows all")


@command.command("show", short_help="Show a run: state, progress, figures, knobs, error.")
@click.argument("run_id", metavar="ID")
@server_options
def show(server: Server, run_id: str, as_json: bool) -> None:
    """Show a run: state, progress, latest figures, knobs and what they may be, error, every state."""
    from limbeck.cli.runs_text import record_json, run_lines

    with server.connect() as client:
        run = find(client, run_id)
    if as_json:
        output.emit_json(record_json(run))
        return
    for line in run_lines(run):
        click.echo(line)
    if run.error is not None:
        click.echo(f"error     {run.error.message} [{run.error.reason}]")
        for problem in run.error.problems:
            click.echo(f"            {problem}")
        if run.state == "failed":
            click.echo(f"to try again, once it is mended:  {server.command('resume', run.run_id)}")


@command.command("watch", short_help="Watch a run to its end, over lost connections.")
@click.argument("run_id", metavar="ID")
@click.option(
    "--after", type=click.IntRange(0), metavar="SEQUENCE", help="Only events after this one; 0 begins with the first."
)
@server_options
def watch(server: Server, run_id: str, after: int | None, as_json: bool) -> None:
    """Watch a run to its end, over lost connections: its history, then what happens.

    Looks as `limbeck run` does; with --json each event is a line. Ctrl-C ends the watching, the run goes on. Exit code
    0 where the run succeeded, 1 where it failed or was cancelled.
    """
    with server.connect() as client:
        sys.exit(_follow(server, client, find(client, run_id).run_id, after, as_json))


def _follow(
    server: Server, client: Client, run_id: str, after: int | None, as_json: bool, *, recipe: Path | None = None
) -> int:
    """Show a run's events to its end; the exit code of the command.

    `recipe`: the file here that the run was just made from; its warnings were told.
    """
    from limbeck.cli.progress import make_display
    from limbeck.client.errors import RECIPE, in_file

    last: Event | None = None
    again = ["watch", run_id]
    try:
        with make_display(as_json=as_json, remote=True) as display:
            for event in client.watch(run_id, after):
                last = event
                said: Any = event.warning  # type checkers take its class for the built-in Warning
                if recipe is not None and not as_json:
                    if event.attempt == 1 and said.reason == "PREFLIGHT":
                        continue
                    for problem in event.state_changed.error.problems:
                        problem.file = str(recipe) if problem.file == RECIPE else problem.file
                display(event)
                if display.gone:
                    raise BrokenPipeError
        told = last is not None and last.HasField("state_changed")
        state, error = _end_of(last) if last is not None and told else _end_now(client.run(run_id))
        error = in_file(error, str(recipe)) if error is not None and recipe is not None else error
    except KeyboardInterrupt:
        text = server.command(*again)
        click.echo(f"stopped watching, not the run. To watch again:\n  {text}", err=True)
        if as_json:
            output.emit_json({"interrupted": {"signal": "SIGINT", "watch": text}}, line=True)
        return EXIT_SIGINT
    except LimbeckError as error:
        if error.reason in (Reason.SERVER_UNAVAILABLE, Reason.PEER_SILENT):
            again += ["--after", str(last.sequence)] if last is not None else []
            click.echo(f"the run may go on. To go on watching:\n  {server.command(*again)}", err=True)
        if not as_json:
            raise
        output.emit_json(output.error_json(error), line=True)
        return error.exit_code
    if as_json:
        ended = {"result": {"run_id": run_id, "state": state}} if error is None else output.error_json(error)
        output.emit_json(ended, line=True)
    elif error is not None:
        if not told:
            output.show_error(error)
        click.echo(f"to try again, once it is mended:\n  {server.command('resume', run_id)}", err=True)
    elif state == "succeeded":
        click.echo(f"to fetch the student:\n  {server.command('fetch', run_id, '--to', '.')}")
    return EXIT_OK if state == "succeeded" else EXIT_FAILED


def _end_of(event: Event) -> tuple[RunState, LimbeckError | None]:
    """How a run ended, by its last event."""
    from limbeck.client.records import state_of
    from limbeck.signals.messages import error_of

    said = event.state_changed
    return state_of(said.state), error_of(said.error) if said.HasField("error") else None


def _end_now(run: Run) -> tuple[RunState, LimbeckError | None]:
    """How a run ended, of which nothing new was to be seen."""
    return run.state, run.error


# -------------------------------------------------------------------------------------------------------------- steer


@command.command("pause", short_help="Let a run save what it needs to go on, and rest.")
@click.argument("run_id", metavar="ID")
@server_options
def pause(server: Server, run_id: str, as_json: bool) -> None:
    """Let a run save what is needed to go on, and rest: the machine is free for others."""
    _steer("pause", server, run_id, as_json)


@command.command("resume", short_help="Let a run that is paused or has failed go on.")
@click.argument("run_id", metavar="ID")
@server_options
def resume(server: Server, run_id: str, as_json: bool) -> None:
    """Let a run that is paused or has failed go on from its newest checkpoint."""
    _steer("resume", server, run_id, as_json)


@command.command("cancel", short_help="End a run for good.")
@click.argument("run_id", metavar="ID")
@server_options
def cancel(server: Server, run_id: str, as_json: bool) -> None:
    """End a run for good. What it has made stays in its folder at the server."""
    _steer("cancel", server, run_id, as_json)


_FOLLOWS = {"pause": ("pausing", "paused"), "cancel": ("cancelling", "cancelled")}


def _steer(what: str, server: Server, run_id: str, as_json: bool) -> None:
    from limbeck.cli.runs_text import record_json

    with server.connect() as client:
        run = getattr(client, what)(find(client, run_id).run_id)
    if as_json:
        output.emit_json(record_json(run))
        return
    follows = _FOLLOWS.get(what, (run.state,))
    later = "" if run.state in follows else f"; it will be {follows[-1]} as soon as its process hears of it"
    click.echo(f"run {run.run_id}: {run.state}{later}")
    if not run.ended and run.state != "paused":
        click.echo(f"to watch it:  {server.command('watch', run.run_id)}")


@command.command("set", short_help="Give knobs other values from the next step on.")
@click.argument("run_id", metavar="ID")
@click.argument("values", nargs=-1, required=True, metavar="KNOB=VALUE…")
@server_options
def set_(server: Server, run_id: str, values: tuple[str, ...], as_json: bool) -> None:
    """Give knobs other values from the next optimizer step on, for good, also over a schedule.

    All of them, or none where one is not allowed. `limbeck runs show ID` has the knobs and their ranges. A name may
    lack its beginning where one knob alone ends so.

    \b
      limbeck runs set 3fa8 losses.forward_kl.weight=0.5
      limbeck runs set 3fa8 forward_kl.weight=0.5 temperature=2
    """
    from limbeck.cli.runs_text import record_json

    with server.connect() as client:
        before = find(client, run_id)
        asked = knob_values(before, values)
        run = client.set_knobs(before.run_id, asked)
    if as_json:
        output.emit_json(record_json(run))
        return
    known = {knob.name: knob.value for knob in before.knobs}
    when = "from the next step on" if run.state == "training" else "once it trains"
    for name, value in asked.items():
        former = f"{known[name]:g} → " if known.get(name) is not None else ""
        click.echo(f"{name}: {former}{value:g} {when}")


# ---------------------------------------------------------------------------------------------------------------- get


@command.command("checkpoints", short_help="List the checkpoints of a run; --save saves one first.")
@click.argument("run_id", metavar="ID")
@click.option("--save", is_flag=True, help="Save one first, after the step under way.")
@server_options
def checkpoints(server: Server, run_id: str, save: bool, as_json: bool) -> None:
    """List the checkpoints of a run. They stay at the server: a resume needs them."""
    from limbeck.cli.runs_text import checkpoints_table, record_json

    with server.connect() as client:
        run = find(client, run_id)
        if save:
            with output.console(stderr=True).status("a checkpoint is saved"):
                client.save_checkpoint(run.run_id)
        found = client.checkpoints(run.run_id)
    if as_json:
        output.emit_json({"checkpoints": [record_json(one) for one in found]})
    elif found:
        output.console().print(checkpoints_table(found))
    else:
        click.echo("no checkpoints yet")


def _given(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A text that is not empty: that is what a shell makes of a variable that is not set."""
    if not value:
        raise click.BadParameter("is empty")
    return value


@command.command("fetch", short_help="Fetch what a run made, its student or any of its files.")
@click.argument("run_id", metavar="ID")
@click.argument("path", default="student", callback=_given)
@click.option("--to", "folder", required=True, callback=_given, metavar="DIR", help="Folder here.")
@server_options
def fetch(server: Server, run_id: str, path: str, folder: str, as_json: bool) -> None:
    """Fetch what a run made: PATH of its folder, `student` where none is given, `.` for all.

    Files are checked, and there only when they are whole. The same command goes on after it was stopped, and fetches
    nothing twice; files of these names that differ are replaced.

    \b
      limbeck runs fetch 3fa8 --to models              models/student
      limbeck runs fetch 3fa8 report --to models       models/report/index.html
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from limbeck.client import Fetching

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = output.console(stderr=True)
    with server.connect() as client:
        run = find(client, run_id)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(path, total=None)

            def told(how_far: Fetching) -> None:
                bar.update(task, description=how_far.path, completed=how_far.done, total=how_far.total)

            place = client.fetch(run.run_id, Path(folder), path, told=told)
    if as_json:
        output.emit_json({"path": str(place)})
    else:
        click.echo(f"fetched {place}")
