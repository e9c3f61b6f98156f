"""Distil at a server: create a run from a recipe, watch it, fetch its student.

    python examples/remote/distil.py recipe.yaml --server 127.0.0.1:7411

The recipe's paths are relative to the server's workspace. Lost connections are made again, also those of hours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from limbeck.client import connect
from limbeck.errors import LimbeckError


def distil(recipe: Path, server: str, token_file: Path | None, to: Path) -> Path:
    """The folder of the student. Raises LimbeckError."""
    with connect(server, token_file=token_file) as client:
        run = client.create_run(recipe)
        print(f"run {run.run_id} is {run.state}")
        for event in client.watch(run.run_id):
            kind = event.WhichOneof("kind")
            if kind == "metrics":
                print(f"step {event.step}: loss {event.metrics.values['loss']:.4f}")
            elif kind == "warning":
                print(f"warning: {event.warning.message}")
        ended = client.run(run.run_id)
        if ended.state != "succeeded":
            sys.exit(f"the run {ended.state}: {ended.error or ''}")
        return client.fetch(run.run_id, to, "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--server", default="127.0.0.1:7411")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--to", type=Path, default=Path("fetched"))
    options = parser.parse_args()
    try:
        print(f"the student is {distil(options.recipe, options.server, options.token_file, options.to)}")
    except LimbeckError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
