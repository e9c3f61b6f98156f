"""How late an event is at a client, and what the service costs a run.

    python benchmarks/events.py                    both tables
    python benchmarks/events.py --seconds 5 --repeats 1

Latency: from `Event.time`, when the run says it, to its receipt in a client, of all events of a training under way,
with 1, 16 and 64 watchers (16 a process at most). It includes the write to disk. Cost: optimizer steps a second of the
same recipe by `limbeck run` and at a server with one watcher, in turn, between the first and the last step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.table import Table
from service_faults import RECIPE, Server, history, make_workspace

from limbeck.client import Client, Event, connect, connect_async
from limbeck.client.records import state_of

WATCHERS = (1, 16, 64)
IN_A_PROCESS = 16
LONG = RECIPE.replace("max_steps: 600", "max_steps: 1000000").replace("save_steps: 40", "save_steps: 100000")


def receive(address: str, run_id: str, count: int, seconds: float) -> None:
    """A process of `count` watchers, each over a connection of its own; prints how late each event was, in ms."""
    after = 0
    with connect(address) as client:
        after = client.run(run_id).last_sequence

    async def one() -> list[float]:
        late: list[float] = []
        end = time.monotonic() + seconds
        async with connect_async(address) as client, aclosing(client.watch(run_id, after)) as events:
            async for event in events:
                late.append((time.time_ns() - event.time.ToNanoseconds()) / 1e6)
                if time.monotonic() > end:
                    break
        return late[len(late) // 5 :]  # without those of the beginning, which were there already

    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*(one() for _ in range(count)))

    print(json.dumps([round(late, 3) for each in asyncio.run(all_of_them()) for late in each]))


def latencies(address: str, run_id: str, watchers: int, seconds: float) -> list[float]:
    """How late the events of a run were at so many watchers, in ms."""
    counts = [min(IN_A_PROCESS, watchers - i) for i in range(0, watchers, IN_A_PROCESS)]
    command = [sys.executable, __file__, "--receive", address, run_id]
    processes = [
        subprocess.Popen([*command, str(count), str(seconds)], stdout=subprocess.PIPE, text=True) for count in counts
    ]
    return [late for process in processes for late in json.loads(process.communicate()[0])]


def latency_table(workspace: Path, log: Path, seconds: float) -> Table:
    """With each number of watchers."""
    table = Table("watchers", "events a second", "received", "p50 ms", "p99 ms", "max ms", title="Emit to receipt")
    server = Server(workspace, log)
    try:
        with connect(server.address) as client:
            run_id = client.create_run(LONG.replace("OUTPUT", "latency")).run_id
            wait_for_training(client, run_id)
            for watchers in WATCHERS:
                before, began = client.run(run_id).last_sequence, time.monotonic()
                late = latencies(server.address, run_id, watchers, seconds)
                rate = (client.run(run_id).last_sequence - before) / (time.monotonic() - began)
                p50, p99 = (statistics.quantiles(late, n=100)[i] for i in (49, 98))
                row = [f"{watchers}", f"{rate:.0f}", f"{len(late):,}", f"{p50:.1f}", f"{p99:.1f}", f"{max(late):.1f}"]
                table.add_row(*row)
            client.cancel(run_id)
    finally:
        server.stop()
    return table


def wait_for_training(client: Client, run_id: str) -> None:
    """Until the first steps are done."""
    for event in client.watch(run_id):
        if event.step > 20:
            return
        if event.state_changed.state and state_of(event.state_changed.state) == "failed":
            raise SystemExit(f"the run failed: {client.run(run_id).error}")


def pace(events: Sequence[Event]) -> float:
    """Steps a second between the first step and the last."""
    steps = [event for event in events if event.WhichOneof("kind") == "metrics" and event.stage == "train"]
    took = (steps[-1].time.ToNanoseconds() - steps[0].time.ToNanoseconds()) / 1e9
    return (steps[-1].step - steps[0].step) / took


def cost_table(workspace: Path, log: Path, steps: int, repeats: int) -> Table:
    """The same recipe by both ways, in turn."""
    recipe = RECIPE.replace("max_steps: 600", f"max_steps: {steps}").replace("save_steps: 40", "save_steps: 100000")
    alone: list[float] = []
    served: list[float] = []
    for repeat in range(repeats):
        file = workspace / f"alone-{repeat}.yaml"
        file.write_text(recipe.replace("OUTPUT", f"alone-{repeat}"))
        command = [sys.executable, "-m", "limbeck.cli.main", "run", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        alone.append(pace(history(workspace, f"runs/alone-{repeat}")))
        server = Server(workspace, log)
        try:
            with connect(server.address) as client:
                run_id = client.create_run(recipe.replace("OUTPUT", f"served-{repeat}")).run_id
                served.append(pace(list(client.watch(run_id))))
        finally:
            server.stop()
    table = Table("", "steps a second, median", "best", title=f"{steps} steps, {repeats} times in turn")
    for name, values in (("limbeck run", alone), ("at a server, watched", served)):
        table.add_row(name, f"{statistics.median(values):.1f}", f"{max(values):.1f}")
    table.add_row(
        "of it", f"{statistics.median(served) / statistics.median(alone):.3f}", f"{max(served) / max(alone):.3f}"
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of watchers")
    parser.add_argument("--steps", type=int, default=1500, help="of a run whose pace is taken")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--receive", nargs=4, metavar=("ADDRESS", "RUN", "COUNT", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        address, run_id, count, seconds = options.receive
        receive(address, run_id, int(count), float(seconds))
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        workspace = make_workspace(work / "workspace")
        console.print(f"{os.cpu_count()} CPUs")
        console.print(latency_table(workspace, work / "serve.log", options.seconds))
        console.print(cost_table(workspace, work / "serve.log", options.steps, options.repeats))


if __name__ == "__main__":
    main()
