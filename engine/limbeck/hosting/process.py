"""The process of a run, or of a look at a recipe, as its server sees it: start, messages, end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path

from limbeck.hosting.channel import Decoder, Message, Start, encode
from limbeck.hosting.kin import KEEP_MARK, MARK, end_kin
from limbeck.runs.folder import LOG

COMMAND = (sys.executable, "-P", "-m", "limbeck.hosting.child")
OLD_LOG = "log.old.txt"
LARGEST_LOG = 16 << 20  # bytes that the next attempt still appends to
_READ_BYTES = 1 << 16
_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # of colours and the like: whoever is told has a terminal too
_TAIL_BYTES = 1 << 16  # of a log, in which its last lines are looked for
_LAST_WORDS = 1.0  # seconds to read what a process that has ended had still sent


class RunProcess:
    """A process in a group of its own: nothing that it started is left when it has ended.

    Its end is waited for by a thread, for the reason that :class:`limbeck.service.process.WorkerProcess` tells.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        self._process, self._mark = process, mark
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._late: asyncio.TimerHandle | None = None
        threading.Thread(target=self._wait, daemon=True, name=f"limbeck-run-{process.pid}").start()

    @classmethod
    async def start(cls, start: Start, mark: str, output: int, command: Sequence[str] = COMMAND) -> RunProcess:
        """Start one and tell it what for. What it prints goes to the file `output`. Raises OSError without room."""
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                (*command, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=start.workspace,
                env=os.environ | KEEP_MARK | {MARK: mark, "PYTHONUNBUFFERED": "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # also out of reach of the terminal's Ctrl-C: the server ends it
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        run = cls(process, mark)
        run._reader, run._writer = await asyncio.open_connection(sock=ours)
        run.post(start.message())
        return run

    @property
    def pid(self) -> int:
        """Its process id, and its group's."""
        return self._process.pid

    def post(self, message: Message) -> None:
        """Say something; lost where it has ended."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncGenerator[list[Message], None]:
        """What it says, as it comes, until it has ended. Raises ValueError for what is no message."""
        decoder = Decoder()
        with suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                if messages := decoder.feed(data):
                    yield messages

    def kill(self) -> None:
        """Kill it, but not what it started: :meth:`end` does."""
        self._process.kill()

    async def end(self) -> int:
        """Kill it and all that it started; how it ended: its exit code, or minus the number of a signal."""
        self._process.kill()
        await self._ended.wait()
        if self._late is not None:
            self._late.cancel()
        self._writer.transport.abort()
        return self._process.returncode

    def _wait(self) -> None:
        self._process.wait()
        end_kin(self._process.pid, self._mark)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._tell_end)

    def _tell_end(self) -> None:
        self._ended.set()
        # a process that is left all the same (without /proc) may hold the socket, so that its end is not seen
        self._late = self._loop.call_later(_LAST_WORDS, lambda: self._writer.transport.abort())


def how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"with exit code {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return f"by {name}, as the system does where memory runs out" if -code == signal.SIGKILL else f"by {name}"


def last_lines(descriptor: int, begin: int, most: int = 4000) -> str:
    """The end of what a process printed into a file from byte `begin` on, at most `most` characters, whole lines.

    Empty where the file cannot be read.
    """
    try:
        size = os.fstat(descriptor).st_size
        start = max(min(begin, size), size - _TAIL_BYTES)  # somebody may have emptied it
        printed = os.pread(descriptor, size - start, start)
    except OSError:
        return ""
    text = _CODES.sub("", printed.decode(errors="replace"))
    # faulthandler ends with a list of all modules in C, longer than all that it says before
    lines = (line for line in text.splitlines() if not line.startswith("Extension modules: "))
    told = "\n".join("".join(sign for sign in line if sign.isprintable() or sign == "\t") for line in lines).strip()
    if len(told) <= most:
        return told
    end = told[-most:]
    return (end.partition("\n")[2] or end).strip()


def open_log(folder: Path) -> int:
    """A descriptor that appends to log.txt of a run; never through a link. Raises OSError.

    One that is long is put aside first, in place of the one before: an attempt prints as much as it prints, but a run
    that is resumed again and again keeps no more than two.
    """
    with suppress(OSError):
        if os.lstat(folder / LOG).st_size > LARGEST_LOG:
            os.replace(folder / LOG, folder / OLD_LOG)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(folder / LOG, flags, 0o644)
