"""Distil on a Limbeck server: start a run, watch it, turn a knob, fetch the student.

limbeck serve --workspace work
python examples/training/distil_from_python.py 127.0.0.1:7411 recipe.yaml here
"""

import argparse
import sys
from pathlib import Path

from limbeck.client import Fetching, connect
from limbeck.errors import LimbeckError


def show(fetching: Fetching) -> None:
    print(f"\r{fetching.done:,} of {fetching.total:,} bytes", end="", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("recipe", type=Path, help="its relative paths are of the server's workspace")
    parser.add_argument("folder", type=Path, help="the student comes here")
    parser.add_argument("--token-file")
    parser.add_argument("--tls-ca")
    parser.add_argument("--request-id", help="your own name of this run: the same one starts no second run")
    parser.add_argument("--at", type=int, default=0, metavar="STEP", help="step at which --set is done")
    parser.add_argument("--set", metavar="KNOB=VALUE", help="e.g. losses.forward_kl.weight=0.5")
    asked = parser.parse_args()

    with connect(asked.address, token_file=asked.token_file, tls_ca=asked.tls_ca) as client:
        found = client.validate(asked.recipe)
        if found.error is not None:
            raise found.error  # every problem, with line and column
        run = client.create_run(asked.recipe, asked.request_id)
        print(f"run {run.run_id}")
        for event in client.watch(run.run_id):  # over lost connections: each event once, in order
            kind = event.WhichOneof("kind")
            if kind == "stage_started":
                print(f"{event.stage} ...")
            elif kind == "knob_changed":
                print(f"step {event.step}: {event.knob_changed.knob} is {event.knob_changed.after:g}")
            elif kind == "metrics" and "loss" in event.metrics.values:
                print(f"step {event.step}: loss {event.metrics.values['loss']:.4f}")
                if asked.set and event.step >= asked.at:
                    knob, _, value = asked.set.partition("=")
                    client.set_knobs(run.run_id, {knob: float(value)})
                    asked.set = None
        ended = client.run(run.run_id)
        if ended.error is not None:
            raise ended.error
        if ended.state != "succeeded":
            sys.exit(f"the run was {ended.state}")
        print(f"\nstudent: {client.fetch(run.run_id, asked.folder, told=show)}")


if __name__ == "__main__":
    try:
        main()
    except LimbeckError as error:  # a reason to decide by, and text with what to do
        sys.exit(f"{error.reason}: {error}")
