"""kill -9 of server, runs and clients at random points: no event is lost, doubled or out of order, each run ends well.

And none is sent before it is in the run's events.jsonl: a watcher looks there when one comes, and after each kill what
watchers have is compared with what is there.

    python benchmarks/service_faults.py                       10 minutes, 8 watchers
    python benchmarks/service_faults.py --minutes 1 --seed 3

A real server (`limbeck serve --workspace`) with a tiny model; watchers in processes of their own, which keep on disk
what they saw and go on from there. Meanwhile runs are created, paused, resumed, cancelled, steered and saved. Then
nothing is killed any more, and every run must end. Prints a table; ends with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from limbeck.client import Client, Event, RestartPolicy, Run, connect
from limbeck.client.records import state_of
from limbeck.errors import LimbeckError, Reason
from limbeck.hosting.public import Public, make_public
from limbeck.hosting.workspace import Workspace

TOKENIZER = Path(__file__).parents[1] / "tests" / "data" / "tok_a"
RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 4, max_length: 256}
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 16, temperature: 2.0}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 600, per_device_train_batch_size: 8, save_steps: 40}
evaluation: {twin: false, samples: 1, max_new_tokens: 8}
output: runs/OUTPUT
"""
STAGES = ("generating", "preparing", "labelling", "training", "evaluating", "reporting")
# What may follow a state. A killed server's runs are queued again, or failed, by the next one, whatever they were in.
_ENDS = {"failed", "queued"}
NEXT: dict[str, set[str]] = {
    "": {"created"},
    "created": {"validating"} | _ENDS,
    "validating": {"queued", "paused", "cancelled"} | _ENDS,
    "queued": {*STAGES, "pausing", "paused", "cancelling", "cancelled", "failed"},
    **{at: {*STAGES[i + 1 :], "pausing", "cancelling"} | _ENDS for i, at in enumerate(STAGES)},
    "pausing": {"paused", "succeeded", "cancelling", "cancelled"} | _ENDS,
    "paused": {"validating", "queued", "cancelled"},
    "cancelling": {"cancelled", "succeeded"} | _ENDS,
    "failed": {"validating", "queued", "cancelled"},
    "succeeded": set(),
    "cancelled": set(),
}
NEXT["reporting"] |= {"succeeded"}
TAG = "LIMBECK_FAULTS"  # in the environment of the server and of all that it starts
# What a call may be told while things are killed: the run is in another state by now, or nobody answers.
EXPECTED = {Reason.RUN_STATE, Reason.SERVER_UNAVAILABLE, Reason.PEER_SILENT, Reason.QUOTA_EXCEEDED}


def make_workspace(folder: Path) -> Path:
    """A tiny teacher and rows."""
    from limbeck.testing.tiny import tiny_model_folder

    tiny_model_folder(folder / "teacher", TOKENIZER, layers=4, seed=1, scale=3.0)
    rows = [{"prompt": f"What is {i} plus {7 * i}?\n", "completion": f"It is {8 * i}."} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Server:
    """`limbeck serve` in a process of its own, always at the same address."""

    def __init__(self, workspace: Path, log: Path, max_runs: int = 1, tag: str = "") -> None:
        self._log, self.tag = log, tag or uuid.uuid4().hex
        self._options = ["--workspace", str(workspace), "--max-runs", str(max_runs)]
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", self.address, *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, TAG: self.tag}
            )
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            first = lines.readline()
        if not first.startswith("listening on "):
            raise SystemExit(f"the server did not start:\n{self._log.read_text()[-3000:]}")
        self.address = first.split()[-1]

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code, or that of SIGKILL where it takes a minute."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def started(self) -> dict[int, str]:
        """What it and former ones started and still lives: command line by pid."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0] if entry.name.isdigit() else "Z"
                if state not in "ZX" and f"{TAG}={self.tag}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        found.pop(self.pid, None)
        return found


# ---------------------------------------------------------------------------------------------------------- watchers


def seen_by(file: Path) -> list[tuple[int, str]]:
    """What a watcher saw of a run: (sequence, event in hex) of each, in the order seen, but for a torn line."""
    if not file.exists():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [(int(number), event) for number, event in map(str.split, lines)]


def packed(event: Event) -> str:
    """An event, so that equal ones are equal texts."""
    return event.SerializeToString(deterministic=True).hex()


def watch(address: str, folder: Path, workspace: Path) -> None:
    """A watcher: follows every run and writes down what it sees, until its stdin closes or it is killed."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    client = connect(address, timeout=30.0, retry_for=600.0)
    followed: set[str] = set()
    while True:
        with suppress(LimbeckError):
            for run in client.runs():
                if run.run_id not in followed:
                    followed.add(run.run_id)
                    history = workspace / run.output / "events.jsonl"
                    threading.Thread(target=_follow, args=(client, run.run_id, folder, history), daemon=True).start()
        time.sleep(0.5)


def _follow(client: Client, run_id: str, folder: Path, history: Path) -> None:
    before = seen_by(folder / run_id)
    if before:
        (folder / run_id).write_text("".join(f"{number} {event}\n" for number, event in before))  # no torn line
    last = before[-1][0] if before else 0
    is_written = _looker(history, last)
    with (folder / run_id).open("a") as file:
        while True:
            state = ""
            try:
                for event in client.watch(run_id, after=last):
                    if not is_written(event):
                        _complain(folder, f"{run_id}: {event.sequence} came before it was written")
                        return
                    file.write(f"{event.sequence} {packed(event)}\n")
                    file.flush()
                    last = int(event.sequence)
                    state = state_of(event.state_changed.state) if event.state_changed.state else ""
            except LimbeckError as error:
                if error.reason not in EXPECTED:
                    _complain(folder, f"{run_id}: {error}")
                    return
            if state in ("succeeded", "cancelled"):
                return
            time.sleep(0.5)  # a run that failed may go on


def _complain(folder: Path, text: str) -> None:
    with (folder / "errors").open("a") as errors:
        errors.write(f"{text}\n")


def _looker(history: Path, after: int) -> Callable[[Event], bool]:
    """Says of each event that follows `after`, in turn, whether the history has it."""
    offset, skipped = 0, after

    def is_written(event: Event) -> bool:
        nonlocal offset, skipped
        with history.open("rb") as stream:
            stream.seek(offset)
            for _ in range(skipped):
                stream.readline()
            line = stream.readline()
            offset, skipped = stream.tell(), 0
        return line.endswith(b"\n") and b'"sequence": "%d"' % event.sequence in line

    return is_written


class Watcher:
    """A watcher in a process of its own; started again it goes on where it was."""

    def __init__(self, address: str, folder: Path, workspace: Path) -> None:
        folder.mkdir()
        self.address, self.folder, self._workspace = address, folder, workspace
        self.start()

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, __file__, "--watch", self.address, str(self.folder), str(self._workspace)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


# ------------------------------------------------------------------------------------------------------------ trouble


class Trouble:
    """Kills and calls at random points, each kind in a thread of its own, until the time is over."""

    def __init__(self, workspace: Path, server: Server, watchers: list[Watcher], seed: int, end: float) -> None:
        self.workspace, self.server, self.watchers, self._seed, self._end = workspace, server, watchers, seed, end
        self._compared: Counter[Path] = Counter()  # events of what a watcher saw of a run
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faults: list[str] = []
        self.asked: set[str] = set()  # request ids
        self.known: dict[str, str] = {}  # run id by request id

    def make(self) -> None:
        """All of it."""
        threads = [threading.Thread(target=self._guarded, args=(one,)) for one in (self._kill, self._steer)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.faults.append(f"{type(error).__name__} in the driver: {error}")
            raise

    def _kill(self) -> None:
        chance = random.Random(self._seed)
        while True:
            time.sleep(chance.uniform(0.5, 8.0))
            if time.monotonic() > self._end:
                return
            what = chance.choices(["server", "run", "client"], [2, 3, 4])[0]
            if what == "server":
                runs = self._runs() if chance.random() < 0.5 else []
                self.server.kill()
                for pid in runs:
                    _kill(pid)
                time.sleep(chance.uniform(0.0, 1.0))
                self._compare()  # nobody writes histories now, and watchers have taken what was sent
                self.server.start()
            elif what == "client":
                watcher = chance.choice(self.watchers)
                watcher.kill()
                watcher.start()
            else:
                runs = self._runs()
                if not runs:
                    continue
                _kill(chance.choice(runs))
                self._compare()
            self.counts[f"kill -9: {what}"] += 1

    def _runs(self) -> list[int]:
        """Their processes."""
        return sorted(pid for pid, line in self.server.started().items() if "limbeck.hosting.child" in line)

    def _compare(self) -> None:
        """Note what watchers have and histories have not, or not so."""
        public = Workspace(self.workspace).public
        for identity in self.workspace.glob("runs/*/run.json"):
            run_id, new = json.loads(identity.read_text())["run_id"], []
            for file in (watcher.folder / run_id for watcher in self.watchers):
                seen = seen_by(file)
                new += seen[self._compared[file] :]
                self._compared[file] = len(seen)
            if new:  # read before the history: only what was there when it came may be there
                lines = _lines(identity.with_name("events.jsonl"))
                self.faults += [
                    f"after a kill: {identity.parent.name}: {fault}" for fault in unwritten(new, lines, public)
                ]
                self.counts["events compared after a kill"] += len(new)

    def _steer(self) -> None:
        chance = random.Random(self._seed + 1)
        with connect(self.server.address, timeout=10.0) as client:
            while time.monotonic() < self._end:
                try:
                    self._step(client, chance)
                except LimbeckError as error:
                    self.refused[str(error.reason)] += 1
                    if error.reason not in EXPECTED:
                        self.faults.append(f"a call was refused: {error}")
                time.sleep(chance.uniform(0.0, 2.0))

    def _step(self, client: Client, chance: random.Random) -> None:
        going = [run for run in client.runs() if run.state not in ("succeeded", "cancelled")]
        if len(going) < 3:
            restart: RestartPolicy = chance.choice(["resume", "resume", "fail"])
            name = f"r{len(self.asked)}"
            self.asked.add(name)
            self.known[name] = client.create_run(RECIPE.replace("OUTPUT", name), name, restart).run_id
            self.counts["create"] += 1
            return
        run = chance.choice(going)
        weight = chance.uniform(0.0, 1.0)
        calls: Mapping[str, Callable[[], object]] = {
            "knob": lambda: client.set_knobs(run.run_id, {"losses.forward_kl.weight": weight}),
            "pause": lambda: client.pause(run.run_id),
            "resume": lambda: client.resume(run.run_id),
            "checkpoint": lambda: client.save_checkpoint(run.run_id),
            "cancel": lambda: client.cancel(run.run_id),
        }
        stopped = run.state in ("paused", "failed")
        weights = [1, 0, 6, 0, 1] if stopped else [6, 1, 0, 2, 0.3]
        name = chance.choices(list(calls), weights)[0]
        calls[name]()
        self.counts[name] += 1


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def settle(client: Client, patience: float) -> list[Run]:
    """Let everything end: what rests goes on. Returns the runs, whatever they are in when the patience is over."""
    end = time.monotonic() + patience
    while True:
        runs = list(client.runs())
        if all(run.state in ("succeeded", "cancelled") for run in runs) or time.monotonic() > end:
            return runs
        for run in runs:
            if run.state in ("paused", "failed"):
                with suppress(LimbeckError):
                    client.resume(run.run_id)
        time.sleep(0.5)


# ------------------------------------------------------------------------------------------------------------- checks


def history(workspace: Path, output: str) -> list[Event]:
    """The events of a run's folder in the workspace, as watchers are told them."""
    public = Workspace(workspace).public
    return [_told(line, public) for line in _lines(workspace / output / "events.jsonl")]


def _lines(file: Path) -> list[str]:
    """Whole lines."""
    return file.read_text("utf-8").split("\n")[:-1]


def _told(line: str, public: Public) -> Event:
    event = json_format.Parse(line, Event())
    make_public(event, public)
    return event


def unwritten(seen: Iterable[tuple[int, str]], lines: list[str], public: Public) -> Iterator[str]:
    """What was sent though it is not in the history, byte for byte."""
    for number, event in sorted(set(seen)):
        if number > len(lines):
            yield f"event {number} was sent, and the history ends with {len(lines)}"
        elif packed(_told(lines[number - 1], public)) != event:
            yield f"event {number} was sent, and the history has another one"


def faults_of_history(events: list[Event]) -> Iterator[str]:
    """What is wrong with the events of one run by themselves."""
    if [event.sequence for event in events] != list(range(1, len(events) + 1)):
        yield "sequences of events.jsonl have a gap"
    state, step, attempt = "", 0, 0
    for event in events:
        kind = event.WhichOneof("kind")
        if event.attempt < attempt:
            yield f"event {event.sequence}: attempt {event.attempt} after {attempt}"
        attempt = event.attempt
        if kind == "state_changed":
            found = state_of(event.state_changed.state)
            if found not in NEXT[state]:
                yield f"event {event.sequence}: {found} after {state or 'nothing'}"
            state = found
        elif kind == "rewound" and event.stage == "train":
            step = event.rewound.to_step
        elif kind == "metrics" and event.stage == "train" and "loss" in event.metrics.values:
            if event.step != step + 1:
                yield f"event {event.sequence}: step {event.step} after {step}, and no rewind said"
            step = event.step


def faults_of_watcher(seen: Iterable[tuple[int, str]], events: list[Event]) -> Iterator[str]:
    """What a watcher saw that it should not have, or did not see."""
    numbers = [number for number, _ in seen]
    if len(set(numbers)) < len(numbers):
        yield f"{len(numbers) - len(set(numbers))} events came twice"
    if numbers != sorted(numbers):
        yield "events came out of order"
    if missing := len(events) - len(set(numbers)):
        yield f"{missing} events never came"
    if wrong := [n for n, event in seen if n > len(events) or event != packed(events[n - 1])]:
        yield f"{len(wrong)} events are not those of events.jsonl, the first is {wrong[0]}"


def check(workspace: Path, runs: list[Run], watchers: list[Watcher], trouble: Trouble) -> Iterator[str]:
    """Everything that is wrong at the end."""
    for run in runs:
        events = history(workspace, run.output)
        yield from (f"{run.output}: {fault}" for fault in faults_of_history(events))
        last = next(state_of(e.state_changed.state) for e in reversed(events) if e.state_changed.state)
        if (run.state, run.last_sequence) != (last, len(events)):
            yield f"{run.output}: GetRun says {run.state}, {run.last_sequence}, its events {last}, {len(events)}"
        if run.state not in ("succeeded", "cancelled"):
            yield f"{run.output}: did not end, it is {run.state}: {run.error}"
        if run.state == "succeeded" and not (workspace / run.output / "student" / "model.safetensors").is_file():
            yield f"{run.output}: succeeded without a student"
        for number, watcher in enumerate(watchers):
            for fault in faults_of_watcher(seen_by(watcher.folder / run.run_id), events):
                yield f"{run.output}, watcher {number}: {fault}"
    for watcher in watchers:
        if (watcher.folder / "errors").exists():
            yield f"a watcher was told: {(watcher.folder / 'errors').read_text()}"
    there = {run.run_id for run in runs}
    if len({run.output for run in runs}) < len(runs) or len(runs) > len(trouble.asked):
        yield f"{len(runs)} runs of {len(trouble.asked)} requests"
    for name, run_id in trouble.known.items():
        if run_id not in there:
            yield f"the run of request {name} is gone"


def caught_up(runs: list[Run], watchers: list[Watcher]) -> bool:
    """Whether every watcher saw the last event of every run."""
    for watcher in watchers:
        for run in runs:
            seen = seen_by(watcher.folder / run.run_id)
            if not seen or seen[-1][0] < run.last_sequence:
                return False
    return True


def examine(minutes: float, seed: int, count: int, folder: Path, console: Console) -> int:
    """Make trouble for so long, let it settle, tell. Returns the exit code."""
    workspace = make_workspace(folder / "workspace")
    server = Server(workspace, folder / "serve.log", max_runs=2)
    watchers = [Watcher(server.address, folder / f"watcher-{i}", workspace) for i in range(count)]
    trouble = Trouble(workspace, server, watchers, seed, time.monotonic() + 60 * minutes)
    try:
        trouble.make()
        with connect(server.address, timeout=60.0) as client:
            runs = settle(client, patience=300.0)
            end = time.monotonic() + 60
            while not caught_up(runs, watchers) and time.monotonic() < end:
                time.sleep(0.2)
    finally:
        for watcher in watchers:
            watcher.kill()
        code = server.stop()
    faults = [*trouble.faults, *check(workspace, runs, watchers, trouble)]
    if code:
        faults.append(f"the server ended with {code}")
    end = time.monotonic() + 10
    while (left := server.started()) and time.monotonic() < end:
        time.sleep(0.1)
    faults += [f"a process is left: {pid} {line}" for pid, line in left.items()]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    report(console, trouble, runs, watchers, workspace, faults)
    return 1 if faults else 0


def report(
    console: Console, trouble: Trouble, runs: list[Run], watchers: list[Watcher], workspace: Path, faults: list[str]
) -> None:
    """Print the table."""
    events = {run.run_id: history(workspace, run.output) for run in runs}
    kinds = Counter(event.WhichOneof("kind") for each in events.values() for event in each)
    saw = sum(len(seen_by(watcher.folder / run.run_id)) for watcher in watchers for run in runs)
    table = Table("what", "count", title="Faults by doing them")
    rows: dict[str, Any] = dict(sorted(trouble.counts.items()))
    rows |= {f"refused: {reason}": number for reason, number in sorted(trouble.refused.items())}
    rows |= {f"runs {state}": number for state, number in sorted(Counter(run.state for run in runs).items())}
    rows |= {"attempts": sum(run.attempt for run in runs), "rewinds": kinds["rewound"], "knobs": kinds["knob_changed"]}
    rows |= {"events": sum(map(len, events.values())), f"events that {len(watchers)} watchers saw": saw}
    rows["wrong"] = len(faults)
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    console.print(table)
    for fault in faults:
        console.print(f"WRONG  {fault}", markup=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watchers", type=int, default=8)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave everything")
    parser.add_argument("--watch", nargs=3, metavar=("ADDRESS", "FOLDER", "WORKSPACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        address, *folders = options.watch
        watch(address, *map(Path, folders))
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        work = options.keep or Path(folder)
        work.mkdir(exist_ok=True)
        sys.exit(examine(options.minutes, options.seed, options.watchers, work.resolve(), console))


if __name__ == "__main__":
    main()
