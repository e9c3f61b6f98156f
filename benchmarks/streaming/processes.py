"""Servers and clients in processes of their own, and what these use."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that speaks gRPC may hang


class Child:
    """A process that runs ``work(pipe, *args)``; `ask` sends it something and gives what it answers."""

    def __init__(self, work: Callable[..., None], *args: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=work, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def send(self, what: Any) -> None:
        self._pipe.send(what)

    def receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"a process of the benchmark ended with {self._process.exitcode}") from None

    def ask(self, what: Any) -> Any:
        self.send(what)
        return self.receive()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def ready(pipe: Connection, address: str, size: int) -> None:
    """Tell the parent where a server listens and how many bytes it will send; stay until the parent ends it."""
    pipe.send((address, size))
    pipe.poll(None)


@contextmanager
def limbeck_serve(*options: str | Path, threads: int | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """A running `limbeck serve`: its address and process."""
    command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", "127.0.0.1:0", *map(str, options)]
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                process.wait()
                log.seek(0)
                raise SystemExit(f"limbeck serve did not start:\n{log.read().decode()}")
            yield line.removeprefix("listening on ").strip(), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def teacher_file(folder: Path, **fields: object) -> Path:
    """A teacher's mapping as `limbeck serve` reads it."""
    file = folder / "teacher.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return file


def processor_seconds(pid: int | None = None) -> float:
    """Processor time of a process, of this one where none is named, and of all its children so far."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


@contextmanager
def watched_memory(process: psutil.Process, every: float = 0.02) -> Iterator[Mapping[str, int]]:
    """The most bytes that a process (`own`) and its children together (`children`) hold meanwhile."""
    most, done = {"own": 0, "children": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(every):
            try:
                now = {
                    "own": process.memory_info().rss,
                    "children": sum(child.memory_info().rss for child in process.children(recursive=True)),
                }
            except psutil.NoSuchProcess:
                continue
            most.update({name: max(value, most[name]) for name, value in now.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        time.sleep(2 * every)
        done.set()
        thread.join()
