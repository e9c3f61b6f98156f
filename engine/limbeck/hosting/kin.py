"""The processes that a worker, or a run's process, started, and those that these started: found and ended with it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "LIMBECK_WORKER"  # variable of a worker's environment, which whatever it starts inherits
# a process that gives itself a title writes it over its environment, as the package setproctitle, which vLLM uses, does
KEEP_MARK = {"SPT_NOENV": "1"}
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    session: int
    marked: bool


def end_kin(leader: int, mark: str) -> None:
    """Kill a worker's process group and, on Linux, its kin, but not this process.

    Its kin is what inherited its mark, what is in a session that it or its kin leads, and what these started.
    """
    leaders = {leader}
    for _ in range(10):  # what is killed last may just have started another
        kin = _kin(leaders, mark)
        leaders |= kin  # what they leave behind is still in their sessions
        for pid in kin - {os.getpid()}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not kin - {os.getpid()}:
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_marked(mark: str) -> None:
    """Kill what inherited a mark, and its kin: what a server that died left. Linux only.

    Nothing is killed by its number, which another process may have by now.
    """
    for _ in range(10):
        kin = _kin(set(), mark) - {os.getpid()}
        for pid in kin:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not kin:
            break


def _kin(leaders: set[int], mark: str) -> set[int]:
    """Pids of the kin of these, which need not live any more."""
    processes = _processes(mark)
    kin = {process.pid for process in processes if process.marked}
    kin |= {process.pid for process in processes if process.session in leaders}
    while more := {process.pid for process in processes if kin & {process.parent, process.session}} - kin:
        kin |= more
    return kin


def _processes(mark: str) -> list[_Process]:
    """All that run and may be looked at."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            state, parent, _, session, *_ = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if state not in (b"Z", b"X"):
                marked = wanted in (folder / "environ").read_bytes().split(b"\0")
                found.append(_Process(int(folder.name), int(parent), int(session), marked))
    return found
