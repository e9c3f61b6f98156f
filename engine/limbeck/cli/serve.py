"""`limbeck serve`: teachers, stored signals and training for whoever is elsewhere."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from limbeck.cli import output
from limbeck.hosting.limits import RunLimits
from limbeck.service.config import LISTEN, ServeConfig, read_limits, read_signals, read_teachers

_FILE = click.Path(path_type=Path)
_RUNS = RunLimits()


@click.command("serve")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME=FILE", help="A teacher: `plugin:` and its config.")
@click.option("--signals", multiple=True, metavar="NAME=RUN_FOLDER", help="Stored signals of a run's training rows.")
@click.option("--workspace", type=_FILE, metavar="FOLDER", help="Take runs of clients; each is a folder in this one.")
@click.option("--read", type=_FILE, multiple=True, metavar="FOLDER", help="Recipes of clients may read here too.")
@click.option("--max-runs", type=int, metavar="N", help=f"Runs that work at once; {_RUNS.max_runs} where left out.")
@click.option("--keep-runs", type=int, metavar="N", help=f"Ended runs to keep; {_RUNS.keep_runs} where left out.")
@click.option("--keep-gib", type=float, metavar="N", help="GiB of ended runs to keep; no limit where left out.")
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="The server's certificate and chain, PEM.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key, PEM, not encrypted.")
@click.option("--client-ca", type=_FILE, metavar="FILE", help="Take only clients with a certificate of this CA.")
@click.option("--insecure", is_flag=True, help="Allow an address that other machines reach without TLS.")
@click.option("--tokens", type=_FILE, metavar="FILE", help="Who may call: names, sha256 of tokens, roles.")
@click.option("--metrics", metavar="HOST:PORT", help="Figures for Prometheus at http://HOST:PORT/metrics.")
@click.option("--allow-full", is_flag=True, help="Let clients ask for the whole vocabulary of every row.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout; the log is on stderr.")
def command(
    teachers: tuple[str, ...],
    signals: tuple[str, ...],
    max_runs: int | None,
    keep_runs: int | None,
    keep_gib: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve teachers, stored signals and training runs over gRPC until Ctrl-C or SIGTERM.

    The first line on stdout is the address. A stopped server answers what is under way and lets its runs save what
    they have, for up to 30 seconds; a second signal ends it at once.
    """
    from limbeck.plugins import load_plugins
    from limbeck.runs.libraries import prepare_libraries

    prepare_libraries()
    from limbeck.service.logs import start_logging
    from limbeck.service.server import serve

    made, faults = read_teachers(teachers, load_plugins())
    folders, more = read_signals(signals)
    limits, others = read_limits(options["workspace"], max_runs, keep_runs, keep_gib)
    config = ServeConfig(teachers=made, signals=folders, runs=limits, faults=(*faults, *more, *others), **options)

    def started(address: str) -> None:
        if as_json:
            output.emit_json({"listening": address}, line=True)
        else:
            click.echo(f"listening on {address}")
            sys.stdout.flush()

    start_logging()
    sys.exit(asyncio.run(serve(config, started)))
