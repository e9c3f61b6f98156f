"""One life of a worker, as its host sees it: start, frames, end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from uuid import uuid4

from limbeck.hosting.kin import KEEP_MARK, MARK, end_kin
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.recipe import Bound
from limbeck.service.link import Link

Log = logging.LoggerAdapter[logging.Logger]
LONGEST_LINE = 2000  # bytes of a worker's line in the log
_LAST_WORDS = 1.0  # seconds to read what a worker that has ended had still sent


class WorkerProcess:
    """A worker in a process group of its own: no process that it started is left when it has ended.

    Its end is waited for by a thread, not by asyncio, whose `wait` in some releases of Python also waits until
    nobody holds the pipes any more.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str, link: Link, log: Log) -> None:
        self._process, self._mark, self._link, self._log = process, mark, link, log
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._late: asyncio.TimerHandle | None = None
        for work in (self._wait, self._read):
            threading.Thread(target=work, daemon=True, name=f"limbeck-worker-{process.pid}").start()

    @classmethod
    async def start(cls, name: str, teacher: Bound, log: Log) -> WorkerProcess:
        """Start a worker and tell it which teacher to be. Raises OSError where the machine has no room for it."""
        ours, theirs = socket.socketpair()
        link, mark = await Link.of(ours), uuid4().hex
        try:
            process = subprocess.Popen(
                (sys.executable, "-P", "-m", "limbeck.service.worker", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | KEEP_MARK | {MARK: mark},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # also out of reach of the terminal's Ctrl-C: the server ends it
            )
        except OSError:
            link.abort()
            raise
        finally:
            theirs.close()
        worker = cls(process, mark, link, log)
        worker.post(internal.ToWorker(start=internal.Start(name=name, teacher=json.dumps(teacher.dump()))))
        return worker

    @property
    def pid(self) -> int:
        """The worker's process id, and its group's."""
        return self._process.pid

    async def receive(self) -> internal.FromWorker | None:
        """What the worker says next; None where it has ended."""
        return await self._link.receive(internal.FromWorker)

    def post(self, message: internal.ToWorker) -> None:
        """Say something; lost where the worker has ended."""
        self._link.post(message)

    async def end(self) -> str:
        """Kill the worker and all that it started, and say how it ended."""
        self._process.kill()
        await self._ended.wait()
        if self._late is not None:
            self._late.cancel()
        await self._link.close()
        code = self._process.returncode
        if code >= 0:
            return f"with exit code {code}"
        return "by " + next((known.name for known in signal.Signals if known == -code), f"signal {-code}")

    def _wait(self) -> None:
        self._process.wait()
        end_kin(self._process.pid, self._mark)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._tell_end)

    def _tell_end(self) -> None:
        self._ended.set()
        # where a process is left all the same (without /proc), it may hold the socket, so that its end is not seen
        self._late = self._loop.call_later(_LAST_WORDS, self._link.abort)

    def _read(self) -> None:
        """What the worker prints, into the log."""
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            while line := printed.readline(LONGEST_LINE):
                if text := line.decode(errors="replace").rstrip():
                    self._log.info("worker: %s", text)
