"""A worker leaves nothing behind, however it ends and whatever it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from limbeck.client import connect
from limbeck.recipe import Bound
from limbeck.testing.teachers import ask

from .hosting import Diary, alive, until

FAMILY = ("born", "engine", "titled", "helper")


@contextmanager
def serving(file: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`limbeck serve` with the teacher `n`, and its address."""
    command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", "127.0.0.1:0", f"--teacher=n={file}"]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server:
        try:
            assert server.stdout is not None
            yield server, server.stdout.readline().split()[-1]
        finally:
            server.kill()


def ready(address: str) -> None:
    with connect(address, timeout=60) as client:
        assert client.teacher("n", wait=120).state == "ready"


@pytest.mark.parametrize("blow", ["kill worker", "kill server", "stop server"])
def test_nothing_that_an_engine_started_outlives_its_worker(
    nursery: Callable[..., Bound], tmp_path: Path, blow: str
) -> None:
    nursery()
    diary, file = Diary(tmp_path), tmp_path / "engine.yaml"
    file.write_text(f"plugin: nursery\nfolder: {tmp_path}\nengine: true\n")
    with serving(file, tmp_path / "log") as (server, address):
        ready(address)
        family = {who: diary.pid(who) for who in FAMILY}
        assert all(map(alive, family.values()))
        assert len({os.getsid(family[who]) for who in ("born", "engine", "helper")}) == 3
        assert Path(f"/proc/{family['titled']}/environ").read_bytes().strip(b"\0") == b""
        # for the package setproctitle: with it a title does not wipe the environment
        assert b"SPT_NOENV=1" in Path(f"/proc/{family['born']}/environ").read_bytes().split(b"\0")
        if blow.endswith("server"):
            server.send_signal(signal.SIGKILL if blow == "kill server" else signal.SIGTERM)
            assert server.wait(60) == (-signal.SIGKILL if blow == "kill server" else 0)
        else:
            diary.kill(signal.SIGKILL)
        ask(until(lambda: not any(map(alive, family.values()))))
        if not blow.endswith("server"):
            ask(until(lambda: diary.pid("helper") != family["helper"]))
            ready(address)
    ask(until(lambda: not any(alive(diary.pid(who)) for who in FAMILY)))
