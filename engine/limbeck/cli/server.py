"""What commands that ask a server share: its options, how runs are named, what a person types next."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from limbeck.errors import LimbeckError, Problem, Reason, counted

if TYPE_CHECKING:
    from limbeck.client import Client, Run, RunDetails

ADDRESS = "127.0.0.1:7411"
SHORT = 8  # signs of a run's id that are shown, where they tell it from the others
WHOLE = 32  # signs of a whole id
MOST_NAMED = 5  # runs that a message names
_FILE = click.Path(path_type=Path)
_OPTIONS = {
    "server": click.option(
        "--server",
        default=ADDRESS,
        show_default=True,
        envvar="LIMBECK_SERVER",
        show_envvar=True,
        metavar="HOST:PORT",
        help="The Limbeck server.",
    ),
    "token_file": click.option(
        "--token-file",
        type=_FILE,
        envvar="LIMBECK_TOKEN_FILE",
        show_envvar=True,
        metavar="FILE",
        help="File with the token for it.",
    ),
    "tls_ca": click.option(
        "--tls-ca",
        type=_FILE,
        envvar="LIMBECK_TLS_CA",
        show_envvar=True,
        metavar="FILE",
        help="Certificate that it is known by, PEM.",
    ),
    "tls_cert": click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate of your own, PEM."),
    "tls_key": click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key, PEM, not encrypted."),
    "insecure": click.option("--insecure", is_flag=True, help="No TLS to an address of another machine."),
}


@dataclass(frozen=True, slots=True)
class Server:
    """Where a command asks, and how it says so to a person."""

    options: dict[str, Any]
    typed: tuple[str, ...]  # the options as they were typed: what is in the environment needs no typing

    def connect(self) -> Client:
        """A client. Raises REQUEST_INVALID."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from limbeck.client import connect

        options = dict(self.options)
        return connect(options.pop("server"), **options)

    def command(self, *words: str) -> str:
        """`limbeck runs WORDS` as it is typed for the same server."""
        return shlex.join(["limbeck", "runs", *words, *self.typed])


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a server, as its argument `server`, and `--json`."""

    @functools.wraps(function)
    def called(**given: Any) -> Any:
        options = {name: given.pop(name) for name in _OPTIONS}
        context = click.get_current_context()
        typed: list[str] = []
        for name, value in options.items():
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                flag = f"--{name.replace('_', '-')}"
                typed += [flag] if value is True else [flag, str(value)]
        return function(server=Server(options, tuple(typed)), **given)

    as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, everything else on stderr.")
    for option in (as_json, *reversed(_OPTIONS.values())):
        called = option(called)
    return called


def find(client: Client, given: str) -> RunDetails:
    """The run of an id, or of the beginning of one that no other run's id has. Raises RUN_UNKNOWN."""
    if len(given) >= WHOLE:  # the server's log calls a refusal a warning: a beginning is not asked for as an id
        try:
            return client.run(given)
        except LimbeckError as error:
            if error.reason not in (Reason.RUN_UNKNOWN, Reason.REQUEST_INVALID):
                raise
    matches = [run for run in client.runs() if given and run.run_id.startswith(given)]
    if len(matches) == 1:
        return client.run(matches[0].run_id)
    if not matches:
        problem = Problem(f"no run's id is or begins with {given!r}", hint="limbeck runs list has them")
    else:
        named = ", ".join(f"{run.run_id} ({run.output})" for run in matches[:MOST_NAMED])
        more = f" and {len(matches) - MOST_NAMED} more" if len(matches) > MOST_NAMED else ""
        begin = f"{counted(len(matches), 'runs')} begin with {given!r}: {named}{more}"
        problem = Problem(begin, hint="give more of the id")
    raise LimbeckError(Reason.RUN_UNKNOWN, problems=[problem])


def short_ids(runs: list[Run]) -> dict[str, str]:
    """The beginning of each id that tells it from the others of `runs`."""
    for length in range(SHORT, 64):
        short = {run.run_id: run.run_id[:length] for run in runs}
        if len(set(short.values())) == len(short):
            return short
    return {run.run_id: run.run_id for run in runs}


def knob_values(run: Run, given: tuple[str, ...]) -> dict[str, float]:
    """`KNOB=VALUE` of a command line; a knob's name may lack its beginning where one knob alone ends so.

    Raises KNOB_INVALID with every problem.
    """
    values: dict[str, float] = {}
    problems: list[Problem] = []
    names = [knob.name for knob in run.knobs]
    for one in given:
        name, equals, text = one.partition("=")
        value = None
        with suppress(ValueError):
            value = float(text)
        if not equals or not name.strip() or value is None:
            problems.append(Problem(f"{one!r} is not KNOB=VALUE with a number", hint="e.g. forward_kl.weight=0.5"))
            continue
        found = _knob(names, name.strip(), problems)
        if found in values:
            problems.append(Problem(f"{found} is given twice", field=found))
        elif found is not None:
            values[found] = value
    if problems:
        raise LimbeckError(Reason.KNOB_INVALID, "The knobs cannot be set like this.", problems)
    return values


def _knob(names: list[str], given: str, problems: list[Problem]) -> str | None:
    """The knob that is meant. Where the run tells none yet, the server knows."""
    if given in names:
        return given
    if not names:
        return given if given.startswith("losses.") else f"losses.{given}"
    ends = [name for name in names if name.endswith(f".{given}")]
    if len(ends) == 1:
        return ends[0]
    from limbeck.errors import nearest

    if ends:
        problems.append(Problem(f"{given!r} may be {' or '.join(ends)}", hint="give more of its name"))
        return None
    shorter = [name.removeprefix("losses.") for name in names]
    guess = nearest(given.removeprefix("losses."), shorter)
    hint = (f"did you mean {guess!r}? " if guess else "") + f"there are {', '.join(names)}"
    problems.append(Problem(f"the run has no knob {given!r}", hint=hint))
    return None
