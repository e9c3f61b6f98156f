"""Do faults to a real server and its clients, and count what is lost, doubled or wrong.

    python benchmarks/faults.py                      every fault, a table
    python benchmarks/faults.py --only proxy --items 2000
    python benchmarks/faults.py --list

Servers are processes of `limbeck serve` with the teacher `echo` and a stored dataset; answers are compared, bit for
bit, with those of the same teacher in this process and with the store. `lost`: items without an answer, `twice`: items
answered more than once, `wrong`: answers that differ. `memory`: the server's, before and at most (workers left out).
The full disk needs a tmpfs of its own, and so root. Ends with 1 where anything is lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from limbeck.client import ScoreItem, StoredSignal, Want, connect
from limbeck.data import read_sequences
from limbeck.plugins import load_plugins
from limbeck.recipe import Bound
from limbeck.signals import Signal, SignalStore

TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "tok_a"
WANT = Want(top_k=32, temperatures=(1.0, 2.0), target=True)
LENGTH = 48  # tokens of an item
RECIPE = """\
teacher: {{plugin: echo, tokenizer: tok}}
student:
  config: {{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, \
vocab_size: 300}}
  tokenizer: tok
data: {{path: rows.jsonl, holdout: 2}}
losses: [{{plugin: forward_kl, top_k: {top_k}}}]
output: run
"""


@dataclass
class Outcome:
    """What a fault did."""

    items: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    before: int = 0  # bytes of the server's memory
    most: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is lost, doubled or wrong."""
        return self.items > 0 and self.lost == self.twice == self.wrong == 0

    def count(self, expected: set[int], found: list[int]) -> None:
        """Count what came against what should."""
        seen = Counter(found)
        self.items += len(expected)
        self.lost += len(expected - seen.keys())
        self.twice += sum(number - 1 for number in seen.values())
        self.wrong += len(seen.keys() - expected)


# ------------------------------------------------------------------------------------------------ servers and answers


class Server:
    """A process of `limbeck serve`. The teacher is `echo`, the dataset `rows`."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder, self._more = folder, more
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Start it, again at the same address."""
        command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", self.address, *self._more]
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("listening on "), (self.folder / "serve.log").read_text()
        self.address = first.split()[-1]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def memory(self) -> int:
        """Bytes of memory in use."""
        status = Path(f"/proc/{self.process.pid}/status")
        with suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0


class Bench:
    """One teacher, its items and their right answers, and servers that are stopped at the end."""

    def __init__(self, folder: Path, items: int) -> None:
        self.folder = folder
        shutil.copytree(TOKENIZER, folder / "tok", dirs_exist_ok=True)
        (folder / "echo.yaml").write_text("plugin: echo\ntokenizer: tok\n")
        rng = np.random.default_rng(0)
        self.items = [
            ScoreItem(number, rng.integers(4, 250, LENGTH).astype(np.int32), 8, LENGTH - 9) for number in range(items)
        ]
        self._stack = ExitStack()
        self._truth: dict[int, Signal] = {}

    @property
    def truth(self) -> dict[int, Signal]:
        """The answers of the same teacher in this process."""
        if not self._truth:
            self._truth = asyncio.run(self._score())
        return self._truth

    async def _score(self) -> dict[int, Signal]:
        entry = load_plugins().entry("teacher", "echo")
        config = entry.plugin.config.model_validate({"tokenizer": str(self.folder / "tok")})
        teacher = Bound(entry, config, "teacher").make()
        return {item_id: signal async for item_id, signal in teacher.score(self.items, WANT)}

    def server(self, *more: str) -> Server:
        """A server with the teacher `echo`."""
        server = Server(self.folder, "--teacher", f"echo={self.folder / 'echo.yaml'}", *more)
        self._stack.callback(lambda: server.kill() if server.process.poll() is None else None)
        with connect(server.address, timeout=60) as client:
            assert client.teacher("echo", wait=60).state == "ready"
        return server

    def label(self, rows: int, *, top_k: int = 32, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Capture a dataset of `rows` rows in `folder`/run."""
        folder = folder or self.folder
        if not (folder / "rows.jsonl").exists():
            lines = [json.dumps({"prompt": f"Row {n}: ", "completion": f"the number {n} " * 8}) for n in range(rows)]
            (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
            shutil.copytree(TOKENIZER, folder / "tok", dirs_exist_ok=True)
            (folder / "recipe.yaml").write_text(RECIPE.format(top_k=top_k))
        command = [sys.executable, "-m", "limbeck.cli.main", "label", str(folder / "recipe.yaml")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def check(self, outcome: Outcome, found: list[tuple[int, Signal]]) -> None:
        """Count scores against the truth."""
        outcome.count({item.item_id for item in self.items}, [item_id for item_id, _ in found])
        outcome.wrong += sum(not same(answer, self.truth[item_id]) for item_id, answer in found)

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()


def same(a: Signal, b: Signal) -> bool:
    """Whether two signals are the same bits."""
    assert a.top_k is not None
    assert b.top_k is not None
    assert a.target is not None
    assert b.target is not None
    pairs = ((a.top_k.ids, b.top_k.ids), (a.top_k.u, b.top_k.u), (a.top_k.tails, b.top_k.tails), (a.target, b.target))
    return all(np.array_equal(x, y) for x, y in pairs)


def replay(bench: Bench, outcome: Outcome, found: list[StoredSignal], run: Path) -> None:
    """Count a replay against the store."""
    sequences = read_sequences(run / "sequences" / "train.arrow")
    store = SignalStore(run / "signals" / "train")
    outcome.count(set(range(1, len(sequences) + 1)), [one.sequence for one in found])
    for one in found:
        top = store.get(sequences[one.sequence - 1]).top_k
        mine = one.signal.top_k
        outcome.wrong += not (top and mine and np.array_equal(top.ids, mine.ids) and np.array_equal(top.u, mine.u))


@contextmanager
def watched(server: Server, outcome: Outcome) -> Iterator[None]:
    """Watch the server's memory."""
    stop = threading.Event()
    outcome.before = outcome.most = server.memory()

    def watch() -> None:
        while not stop.wait(0.02):
            outcome.most = max(outcome.most, server.memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


def gone(pids: list[int], seconds: float = 10.0) -> list[int]:
    """Of these processes those that still run after a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]):
        time.sleep(0.05)
    return left if pids and left else []


# --------------------------------------------------------------------------------------------------------------- faults

CLIENT = """
import sys
from limbeck.client import Want, ScoreItem, connect
import numpy as np
address, length = sys.argv[1], int(sys.argv[2])
def items():
    rng, number = np.random.default_rng(1), 0
    while True:
        yield ScoreItem(number, rng.integers(4, 250, length).astype(np.int32), 8, length - 9)
        number += 1
with connect(address) as client:
    for count, _ in enumerate(client.score("echo", items(), Want(top_k=32, target=True))):
        print(count, flush=True)
"""


def client_killed(bench: Bench) -> Outcome:
    """Three clients are killed in the midst of a stream while a fourth goes on."""
    outcome, server = Outcome(), bench.server("--metrics", "127.0.0.1:0")
    with watched(server, outcome), ThreadPoolExecutor(1) as pool:
        others = []
        for _ in range(3):
            command = [sys.executable, "-c", CLIENT, server.address, str(LENGTH)]
            others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline()
        mine = pool.submit(lambda: score_all(bench, server.address))
        for other in others:
            with other:  # closes its pipe, and waits
                other.kill()
        bench.check(outcome, mine.result())
    # what the killed ones had under way is let go: a client that may have no more than one call gets one
    with connect(server.address) as client:
        list(client.score("echo", bench.items[:3], WANT))
    outcome.notes.append("3 of 4 clients killed")
    return outcome


def score_all(bench: Bench, address: str, **options: Any) -> list[tuple[int, Signal]]:
    """All items, by one client."""
    with connect(address, **options) as client:
        return list(client.score("echo", bench.items, WANT))


def server_killed(bench: Bench) -> Outcome:
    """kill -9 of the server in the midst of a stream of scores and one of a replay, three times; started again."""
    assert bench.label(len(bench.items)).returncode == 0
    outcome, server = Outcome(), bench.server("--signals", f"rows={bench.folder / 'run'}")
    scores: list[tuple[int, Signal]] = []
    stored: list[StoredSignal] = []

    def ask() -> None:
        with connect(server.address, timeout=60) as client:
            for answer in client.score("echo", bench.items, WANT, credit=1 << 20):
                scores.append(answer)
                time.sleep(0.001)

    def read() -> None:
        with connect(server.address, timeout=60) as client:
            for one in client.signals("rows"):
                stored.append(one)
                time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        asked, replayed = pool.submit(ask), pool.submit(read)
        workers: list[int] = []
        for part in (1, 2, 3):
            while len(scores) < part * len(bench.items) // 5 and not asked.done():
                time.sleep(0.005)
            workers += server.workers()
            server.kill()
            server.start()
        asked.result(), replayed.result()
    bench.check(outcome, scores)
    replay(bench, outcome, stored, bench.folder / "run")
    left = gone(workers)
    outcome.wrong += len(left)
    outcome.before = outcome.most = server.memory()
    outcome.notes.append(f"3 kills, {len(workers)} workers of dead servers, {len(left)} left")
    return outcome


def worker_killed(bench: Bench) -> Outcome:
    """kill -9 of the teacher's worker in the midst of a batch, three times."""
    outcome, server = Outcome(), bench.server()
    found: list[tuple[int, Signal]] = []

    def ask() -> None:
        with connect(server.address, timeout=60) as client:
            found.extend(client.score("echo", bench.items, WANT))

    killed: list[int] = []
    with watched(server, outcome), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        for _ in range(3):
            while not asked.done() and (not server.workers() or server.workers()[0] in killed):
                time.sleep(0.01)
            time.sleep(0.3)
            for pid in server.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        asked.result()
    bench.check(outcome, found)
    outcome.wrong += len(gone(killed))
    outcome.notes.append(f"{len(killed)} workers killed, the server stayed up")
    outcome.wrong += server.process.poll() is not None
    return outcome


class Proxy:
    """Passes TCP on in small pieces, slowly, and drops the connection at random."""

    def __init__(self, target: str, seed: int = 0) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.dropped = self.passed = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                budget = self._random.randrange(50_000, 4_000_000)
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(a, b, budget), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, budget: int) -> None:
        with suppress(OSError):
            while budget > 0 and (data := source.recv(self._random.choice((1, 7, 300, 16_384)))):
                if self._random.random() < 0.01:
                    time.sleep(0.02)
                target.sendall(data)
                budget -= len(data)
                self.passed += len(data)
            self.dropped += budget <= 0
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def proxy(bench: Bench) -> Outcome:
    """A proxy between client and server that splits, delays and drops."""
    assert bench.label(len(bench.items)).returncode == 0
    outcome, server = Outcome(), bench.server("--signals", f"rows={bench.folder / 'run'}")
    between = Proxy(server.address)
    with watched(server, outcome):
        bench.check(outcome, score_all(bench, between.address))
        with connect(between.address) as client:
            replay(bench, outcome, list(client.signals("rows")), bench.folder / "run")
    outcome.notes.append(f"{between.dropped} connections dropped in {between.passed / 2**20:.1f} MiB")
    between.close()
    return outcome


def reader_stops(bench: Bench) -> Outcome:
    """Readers that take one answer and stop; another client is served meanwhile, then they read on."""
    assert bench.label(len(bench.items), top_k=256).returncode == 0
    outcome, server = Outcome(), bench.server("--signals", f"rows={bench.folder / 'run'}")
    with watched(server, outcome), ExitStack() as stack:
        slow = [stack.enter_context(connect(server.address)) for _ in range(8)]
        scores = [client.score("echo", bench.items, WANT) for client in slow]
        replays = [client.signals("rows") for client in slow]
        first = [next(one) for one in scores], [next(one) for one in replays]
        time.sleep(2)
        bench.check(outcome, score_all(bench, server.address))
        for answers, one in zip(scores, first[0], strict=True):
            bench.check(outcome, [one, *answers])
        for stored, head in zip(replays, first[1], strict=True):
            replay(bench, outcome, [head, *stored], bench.folder / "run")
    outcome.notes.append("8 readers stopped for 2 s and more")
    return outcome


def many_clients(bench: Bench) -> Outcome:
    """64 clients at once."""
    outcome, server = Outcome(), bench.server()
    few = bench.items[: max(8, len(bench.items) // 16)]
    with watched(server, outcome), ThreadPoolExecutor(64) as pool:

        def ask(_: int) -> list[tuple[int, Signal]]:
            with connect(server.address) as client:
                return list(client.score("echo", few, WANT))

        for found in pool.map(ask, range(64)):
            outcome.count({item.item_id for item in few}, [item_id for item_id, _ in found])
            outcome.wrong += sum(not same(answer, bench.truth[item_id]) for item_id, answer in found)
    outcome.notes.append(f"64 clients, {len(few)} items each")
    return outcome


def disk_full(bench: Bench) -> Outcome:
    """The disk fills in the midst of a capture; a client reads it while, with space again, the same command goes on."""
    outcome = Outcome()
    small, whole = bench.folder / "small", bench.folder / "whole"
    rows = max(400, len(bench.items))
    whole.mkdir()
    small.mkdir()
    assert bench.label(rows, top_k=256, folder=whole).returncode == 0
    size = sum(path.stat().st_size for path in (whole / "run").rglob("*") if path.is_file())
    room = size * 6 // 10 + 2 * 2**20
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", small], check=False)
    if mounted.returncode:
        outcome.notes.append("not done: a tmpfs needs root")
        outcome.items = 1
        return outcome
    try:
        filler = small / "filler"
        filler.write_bytes(bytes(2 * 2**20))
        done = bench.label(rows, top_k=256, folder=small)
        outcome.wrong += done.returncode != 1 or "DISK_FULL" not in done.stderr
        outcome.wrong += "bytes are free" not in done.stderr
        kept = {path.name: path.read_bytes() for path in (small / "run" / "signals" / "train").glob("shard-*")}
        server = bench.server("--signals", f"rows={small / 'run'}")
        with watched(server, outcome), ThreadPoolExecutor(1) as pool, connect(server.address) as client:
            read = pool.submit(lambda: list(client.signals("rows")))
            subprocess.run(["mount", "-o", f"remount,size={4 * size + 64 * 2**20}", small], check=True)
            filler.unlink()
            again = bench.label(rows, top_k=256, folder=small)
            outcome.wrong += again.returncode != 0
            replay(bench, outcome, read.result(60), small / "run")
        for path in (whole / "run" / "signals").rglob("shard-*"):
            other = small / "run" / path.relative_to(whole / "run")
            outcome.wrong += not other.is_file() or other.read_bytes() != path.read_bytes()
        outcome.wrong += any((small / "run/signals/train" / name).read_bytes() != raw for name, raw in kept.items())
        outcome.notes.append(f"{len(kept)} shards before, the same bytes as an undisturbed capture after")
        server.kill()
    finally:
        subprocess.run(["umount", "-l", small], check=False)
    return outcome


FAULTS: dict[str, Callable[[Bench], Outcome]] = {
    "client killed": client_killed,
    "server killed": server_killed,
    "worker killed": worker_killed,
    "proxy": proxy,
    "reader stops": reader_stops,
    "disk full": disk_full,
    "many clients": many_clients,
}


def run(name: str, items: int) -> Outcome:
    """Do one fault, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="limbeck-faults-"))
    bench = Bench(folder, items)
    try:
        return FAULTS[name](bench)
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--only", choices=FAULTS, action="append")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<16}{(fault.__doc__ or '').splitlines()[0]}" for name, fault in FAULTS.items()))
        return 0
    print(f"{'fault':<16}{'items':>8}{'lost':>6}{'twice':>7}{'wrong':>7}{'memory MiB':>14}{'seconds':>9}  notes")
    bad = 0
    for name in options.only or FAULTS:
        start = time.monotonic()
        found = run(name, options.items)
        memory = f"{found.before / 2**20:.0f} → {found.most / 2**20:.0f}"
        cells = f"{found.items:>8,}{found.lost:>6}{found.twice:>7}{found.wrong:>7}{memory:>14}"
        print(f"{name:<16}{cells}{time.monotonic() - start:>9.1f}  {'; '.join(found.notes)}", flush=True)
        bad += not found.good
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
