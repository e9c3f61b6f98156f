"""Part replay: stored signals by four transports."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.table import Table

from limbeck.signals import SignalHeader, SignalStore
from streaming.processes import Child, limbeck_serve, processor_seconds
from streaming.rows import LENGTH, distributions, store, token_texts
from streaming.tables import new_table, times
from streaming.transports import READERS, serve_flight, serve_json, serve_raw

K = 64
BUDGET = 50  # times the rate of JSON over HTTP, at least


@dataclass
class Contender:
    """A server's pid, and a client that reads its first `count` sequences: `size` bytes without framing."""

    name: str
    server: int | None
    client: Child
    count: int
    size: int
    seconds: list[float] = field(default_factory=list)
    server_used: list[float] = field(default_factory=list)
    client_used: list[float] = field(default_factory=list)

    def read(self) -> None:
        """One round."""
        before = processor_seconds(self.server)
        seconds, used, _ = self.client.ask((self.count, 0))
        self.seconds.append(seconds)
        self.client_used.append(used)
        self.server_used.append(processor_seconds(self.server) - before)

    @property
    def tokens(self) -> int:
        """Tokens of a round."""
        return self.count * LENGTH

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / statistics.median(self.seconds)


def read(pipe: Connection, transport: str, address: str, header: SignalHeader) -> None:
    """A client: reads as often as it is asked to, and tells what the first `compared` sequences were."""
    while True:
        count, compared = pipe.recv()
        rows, digest = 0, hashlib.sha256()
        start, used = time.perf_counter(), time.process_time()
        for place, (ids, logprobs) in enumerate(READERS[transport](address, count, header)):
            rows += len(ids)
            if place < compared:
                digest.update(ids.tobytes() + logprobs.tobytes())
        seconds, used = time.perf_counter() - start, time.process_time() - used
        if rows != count * LENGTH:
            raise SystemExit(f"{transport}: {rows} rows came, {count * LENGTH} were due")
        pipe.send((seconds, used, digest.hexdigest()))


def table(options: argparse.Namespace, folder: Path) -> Table:
    truth = distributions(options, K)
    count = store(truth, options.tokens, folder)
    few = max(1, round(count * options.json_share))
    (folder / "texts.json").write_text(json.dumps(token_texts(options, truth)))
    header = SignalStore(folder / "signals" / "train").header
    with ExitStack() as stack:

        def child(work: Callable[..., None], *args: Any) -> Child:
            return stack.enter_context(closing(Child(work, *args)))

        address, process = stack.enter_context(limbeck_serve("--signals", f"bench={folder}"))
        servers = {
            "raw": child(serve_raw, folder),
            "flight": child(serve_flight, folder),
            "json": child(serve_json, folder, few, False),
            "json kept": child(serve_json, folder, few, True),
        }
        places = {kind: (*server.receive(), server.pid) for kind, server in servers.items()}
        places |= dict.fromkeys(("limbeck", "normalised"), (address, places["raw"][1], process.pid))
        contenders = {}
        for kind, (at, size, pid) in sorted(places.items(), key=lambda place: list(LABELS).index(place[0])):
            client = child(read, kind.split()[0], at, header)
            contenders[kind] = Contender(LABELS[kind], pid, client, few if "json" in kind else count, size)
        # the first round is not counted: servers read and check their files, clients import what they need
        digests = {
            kind: one.client.ask((one.count, few))[2] for kind, one in contenders.items() if kind != "normalised"
        }
        if len(set(digests.values())) > 1:
            raise SystemExit(f"not all gave the same numbers: {digests}")
        for number in range(options.rounds):
            for one in list(contenders.values())[:: -1 if number % 2 else 1]:
                one.read()
    return _table(list(contenders.values()), options)


LABELS = {
    "limbeck": "Limbeck",
    "normalised": "Limbeck, then at(1)",
    "raw": "raw TCP",
    "flight": "Arrow Flight",
    "json": "HTTP JSON",
    "json kept": "HTTP JSON, kept",
}


def _table(contenders: list[Contender], options: argparse.Namespace) -> Table:
    first = contenders[0]
    title = f"replay: {first.tokens:,} tokens, k = {K}, {'drawn' if options.model is None else options.model}"
    notes = (
        f"Medians of {options.rounds} rounds in turn. Limbeck: limbeck serve, read with limbeck.client; at(1): also "
        "normalised, by TopK.at; kept: texts made beforehand, else when asked for. All gave the same ids and "
        "log-probabilities. GB: 1e9 bytes without framing; server: its share of the processor time. Limbeck ×: how "
        f"many times as many tokens a second it gives (budget: {BUDGET} times HTTP JSON)."
    )
    columns = ("tokens", "s", "tokens/s", "MB/s", "B/token", "CPU s/GB", "CPU s/M tok.", "server", "Limbeck ×")
    found = new_table(title, columns, notes)
    for one in contenders:
        server, client = statistics.mean(one.server_used), statistics.mean(one.client_used)
        found.add_row(
            one.name,
            f"{one.tokens:,}",
            f"{statistics.median(one.seconds):.2f}",
            f"{one.rate:,.0f}",
            f"{one.size / statistics.median(one.seconds) / 1e6:,.0f}",
            f"{one.size / one.tokens:,.0f}",
            f"{(server + client) / one.size * 1e9:.1f}",
            f"{(server + client) / one.tokens * 1e6:.2f}",
            f"{server / max(server + client, 1e-9):.0%}",
            times(first.rate / one.rate),
        )
    return found
