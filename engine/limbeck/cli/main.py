"""The command `limbeck`: loads commands when they are called, and sees to errors, pipes and exit codes for all."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from limbeck.cli import output
from limbeck.errors import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_SIGINT, LimbeckError, extra_missing, told

EXIT_SIGPIPE = 128 + signal.SIGPIPE

# Name of each command, which is its module in limbeck.cli, and what it does. Help imports none of them.
COMMANDS = {
    "run": "Distil by a recipe: generate, prepare, label, train, evaluate, report.",
    "resume": "Go on with a run that was interrupted.",
    "label": "Capture a teacher's signals of a recipe's rows, and nothing more.",
    "check": "Look at a recipe and all that it names; spends nothing, prints it resolved.",
    "preview": "Show rows as the trainer sees them, the trained tokens marked.",
    "audit": "Measure what a signal costs and loses, on rows of one's own.",
    "teachers": "Compare the teachers of a recipe, and its student, on held-out rows.",
    "serve": "Serve teachers, stored signals and runs to clients anywhere.",
    "runs": "Start, watch and steer runs of a server from anywhere.",
    "plugins": "List the plugins that are installed, and those that failed.",
    "schema": "Print the JSON Schema of a recipe, for editors.",
}

HELP = """Distil large language models into small ones.

\b
  limbeck check recipe.yaml      what the recipe means, and what is wrong with it
  limbeck preview recipe.yaml    a few rows, the trained tokens marked
  limbeck run recipe.yaml        from the recipe to the student and its report
  limbeck resume runs/mine       after Ctrl-C, a crash or a power cut

\b
A recipe in four lines:
  student: {model: HuggingFaceTB/SmolLM2-135M}
  data: {path: rows.jsonl}
  losses: [{plugin: cross_entropy}]
  output: runs/mine
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order that a person uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"limbeck.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for one that does not exist."""
        from limbeck.errors import nearest

        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            guess = nearest(name, list(COMMANDS))
            advice = f"Did you mean {guess!r}?" if guess else f"Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {name!r}. {advice}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from limbeck import __version__

        click.echo(f"limbeck {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    help=HELP,
    epilog="Exit codes: 0 done, 1 failed, 2 refused, 3 not possible as things are, 130 and 143 stopped.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def cli() -> None:
    """Nothing of its own."""


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code. Never raises for what a user or a plugin did."""
    before_dashes = args[: args.index("--")] if "--" in args else args
    as_json = "--json" in before_dashes
    try:
        if not as_json:
            return _run(args, as_json)
        with output.machine_output():
            return _run(args, as_json)
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_SIGPIPE


def _run(args: Sequence[str], as_json: bool) -> int:
    try:
        with cli.make_context("limbeck", list(args)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        sys.stdout.flush()
        return leave.exit_code
    except click.ClickException as error:
        _show_usage(error, as_json)
        return EXIT_INVALID
    except LimbeckError as error:
        output.show_error(error, as_json=as_json)
        return error.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else EXIT_OK if leave.code is None else EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        return EXIT_SIGINT
    except BrokenPipeError:
        raise
    except Exception as error:
        return _unexpected(error, as_json)
    return EXIT_OK


def _show_usage(error: click.ClickException, as_json: bool) -> None:
    if as_json:
        output.emit_json({"error": {"reason": "USAGE", "message": error.format_message(), "problems": []}})
    else:
        error.show()


def _unexpected(error: Exception, as_json: bool) -> int:
    """An extra that is not installed, or a fault of ours."""
    missing = extra_missing(error) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None:
        output.show_error(missing, as_json=as_json)
        return missing.exit_code
    if os.environ.get("LIMBECK_DEBUG"):
        raise error
    message = told(error)
    hint = "This is a fault of Limbeck or of a plugin. LIMBECK_DEBUG=1 shows where; please report it."
    if as_json:
        output.emit_json({"error": {"reason": "INTERNAL", "message": message, "problems": [{"message": hint}]}})
    else:
        click.echo(f"error: {message}\n  {hint}", err=True)
    return EXIT_FAILED


def _abandon_stdout() -> None:
    """The reader of stdout has gone: let nothing that is still buffered complain about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _ensure_streams() -> None:
    """Where the caller closed stdout or stderr, open the null device: the next file would take its place."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))


def main(args: Sequence[str] | None = None) -> Any:
    """Entry point of the console script."""
    _ensure_streams()
    if "_LIMBECK_COMPLETE" in os.environ:
        return cli.main(prog_name="limbeck")  # shell completion
    sys.exit(run(sys.argv[1:] if args is None else args))


if __name__ == "__main__":
    main()
