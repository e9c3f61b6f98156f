"""Part clients: many clients of one server, for a fixed time."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rich.table import Table

from limbeck.client import Client, ScoreItem, Want, connect
from streaming.processes import Child, limbeck_serve, teacher_file, watched_memory
from streaming.rows import TOKENIZER, distributions, store
from streaming.tables import new_table, times

STORED = 65_536  # tokens of the replayed signals, at most: read again and again
ITEM = 128  # tokens of a sequence to score
UNDER_WAY = 32  # such sequences of a client at once


def read_many(pipe: Connection, kind: str, address: str, count: int, seconds: float) -> None:
    """`count` clients in threads: tells when they are connected, waits for a word, tells the tokens of each."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(count)]
        for client in clients:
            for teacher in client.teachers():
                client.teacher(teacher.name, wait=120)
        pipe.send("connected")
        pipe.recv()
        end, tokens = time.monotonic() + seconds, [0] * count
        work = {"replay": _replay, "score": _score}[kind]

        def count_tokens(place: int) -> None:
            for more in work(clients[place], end, place):
                tokens[place] += more if time.monotonic() < end else 0

        threads = [threading.Thread(target=count_tokens, args=(place,)) for place in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send(tokens)


def _replay(client: Client, end: float, seed: int) -> Iterator[int]:
    while time.monotonic() < end:
        with closing(client.signals("bench")) as signals:
            for found in signals:
                yield found.signal.n
                if time.monotonic() >= end:
                    return


def _score(client: Client, end: float, seed: int) -> Iterator[int]:
    free, draw = threading.Semaphore(UNDER_WAY), np.random.default_rng(seed)

    def items() -> Iterator[ScoreItem]:
        number = 0
        while time.monotonic() < end:
            if free.acquire(timeout=0.1):
                yield ScoreItem(number, draw.integers(3, 255, ITEM).astype(np.int32), 0, ITEM)
                number += 1

    with closing(client.score("echo", items(), Want(top_k=64))) as answers:
        for _, signal in answers:
            free.release()
            yield signal.n
            if time.monotonic() >= end:
                return


def table(options: argparse.Namespace, folder: Path) -> Table:
    run = folder / "run"
    truth = distributions(options, 64)
    store(truth, min(options.tokens, STORED), run)
    file = teacher_file(folder, plugin="echo", tokenizer=TOKENIZER)
    notes = (
        f"{options.seconds:g} s each with a new server each time, clients in {os.cpu_count()} processes. Replay: "
        f"k = 64 of {truth.vocab_size:,} words. Score: a teacher without a model (echo), k = 64, each client with "
        f"{UNDER_WAY} sequences of {ITEM} tokens under way. Least: the slowest client's share of the mean. CPU "
        "and MiB: of the server, whose resident memory is that with all clients connected, and the most since; worker: "
        "the most of the process that computes."
    )
    columns = ("clients", "tokens/s of all", "× first", "least", "CPU s/M tok.", "MiB", "at most", "worker MiB")
    found = new_table("clients of one server", columns, notes)
    ways: dict[str, tuple[str, str]] = {"replay": ("--signals", f"bench={run}"), "score": ("--teacher", f"echo={file}")}
    for kind, serve in ways.items():
        first = None
        for count in options.clients:
            tokens, used, rest, most = _measure(kind, serve, count, options.seconds)
            rate = sum(tokens) / options.seconds
            first = first or rate
            found.add_row(
                kind,
                str(count),
                f"{rate:,.0f}",
                times(rate / max(first, 1e-9)),
                f"{min(tokens) * count / max(sum(tokens), 1):.0%}",
                f"{used / max(sum(tokens), 1) * 1e6:.2f}",
                f"{rest / 2**20:,.0f}",
                f"{most['own'] / 2**20:,.0f}",
                f"{most['children'] / 2**20:,.0f}" if most["children"] else "",
            )
        found.add_section()
    return found


def _measure(
    kind: str, serve: tuple[str, str], count: int, seconds: float
) -> tuple[list[int], float, int, dict[str, int]]:
    """Tokens of each client, the server's processor seconds, and its memory before and at most."""
    processes = min(count, os.cpu_count() or 1)
    shares = [count // processes + (place < count % processes) for place in range(processes)]
    with limbeck_serve(*serve) as (address, process), ExitStack() as stack:
        children = [stack.enter_context(closing(Child(read_many, kind, address, share, seconds))) for share in shares]
        for child in children:
            child.receive()
        rest, before = process.memory_info().rss, sum(process.cpu_times()[:2])
        with watched_memory(process) as most:
            for child in children:
                child.send("go")
            tokens = [number for child in children for number in child.receive()]
        return tokens, sum(process.cpu_times()[:2]) - before, rest, dict(most)
