"""The processes that a worker started, and those that these started: found and ended with it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

MARK = "LIMBECK_WORKER"  # variable of a worker's environment, which whatever it starts inherits
_PROC = Path("/proc")


def end_kin(leader: int, mark: str) -> None:
    """Kill a worker's process group and, on Linux, everything that inherited its mark, but not this process."""
    for _ in range(10):  # what is killed last may just have started another
        kin = marked(mark)
        for pid in kin:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not kin:
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """Processes with this mark, this one left out; of those that are ending there is none."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
