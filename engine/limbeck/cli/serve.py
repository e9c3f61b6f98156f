"""`limbeck serve`: teachers and stored signals for trainers anywhere."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from limbeck.cli import output
from limbeck.service.config import LISTEN, ServeConfig, read_signals, read_teachers

_FILE = click.Path(path_type=Path)


@click.command("serve")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME=FILE", help="A teacher: `plugin:` and its config.")
@click.option("--signals", multiple=True, metavar="NAME=RUN_FOLDER", help="Stored signals of a run's training rows.")
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="The server's certificate and chain, PEM.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key, PEM, not encrypted.")
@click.option("--client-ca", type=_FILE, metavar="FILE", help="Take only clients with a certificate of this CA.")
@click.option("--insecure", is_flag=True, help="Allow an address that other machines reach without TLS.")
@click.option("--tokens", type=_FILE, metavar="FILE", help="Who may call: names, sha256 of tokens, roles.")
@click.option("--metrics", metavar="HOST:PORT", help="Figures for Prometheus at http://HOST:PORT/metrics.")
@click.option("--allow-full", is_flag=True, help="Let clients ask for the whole vocabulary of every row.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout; the log is on stderr.")
def command(teachers: tuple[str, ...], signals: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Serve teachers and stored signals over gRPC until Ctrl-C or SIGTERM.

    The first line on stdout is the address. A stopped server answers what is under way, for up to 30 seconds; a
    second signal ends it at once.
    """
    from limbeck.plugins import load_plugins
    from limbeck.runs.libraries import prepare_libraries

    prepare_libraries()
    from limbeck.service.logs import start_logging
    from limbeck.service.server import serve

    made, faults = read_teachers(teachers, load_plugins())
    folders, more = read_signals(signals)
    config = ServeConfig(teachers=made, signals=folders, faults=(*faults, *more), **options)

    def started(address: str) -> None:
        if as_json:
            output.emit_json({"listening": address}, line=True)
        else:
            click.echo(f"listening on {address}")
            sys.stdout.flush()

    start_logging()
    sys.exit(asyncio.run(serve(config, started)))
