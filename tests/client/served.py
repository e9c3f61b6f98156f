"""`limbeck serve` as a process of its own, which a test may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from limbeck.client import connect

ROOT = Path(__file__).parents[2]


class Process:
    """A server; `kill` and `start` again give one at the same address."""

    def __init__(self, *arguments: str, log: Path, listen: str = "127.0.0.1:0") -> None:
        self._arguments, self._log = arguments, log
        self.address = listen
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", self.address, *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            first = lines.readline()
        assert first.startswith("listening on "), self._log.read_text()
        self.address = first.split()[-1]

    def ready(self, teacher: str) -> None:
        with connect(self.address, timeout=60) as client:
            state = client.teacher(teacher, wait=120)
            assert state.state == "ready", state.error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if self._process.poll() is None:
            self.kill()
        return int(self._process.returncode)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
