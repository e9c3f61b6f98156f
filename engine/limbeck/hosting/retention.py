"""Which ended runs keep their folders, so that the disk does not fill up."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.files import FolderLock
from limbeck.hosting.ledger import Ledger
from limbeck.hosting.limits import RunLimits
from limbeck.hosting.record import ENDED, Record
from limbeck.runs.folder import IDENTITY

GIB = 1 << 30


class Retention:
    """Removes the folders of the runs that ended first. They stay in the index."""

    def __init__(self, ledger: Ledger, limits: RunLimits) -> None:
        self._ledger, self._limits = ledger, limits
        self._lock = asyncio.Lock()

    async def apply(self) -> None:
        """Remove what is too much. One that somebody works on, by hand say, stays."""
        async with self._lock:
            ended = [one for one in self._ledger.records.values() if one.state in ENDED and one.task is None]
            ended.sort(key=lambda one: one.run.since.ToNanoseconds())
            if self._limits.keep_gib:
                for record in ended:
                    if not record.size:
                        record.size = await asyncio.to_thread(_size, self._ledger.folder(record))
                        record.dirty = True
            size = sum(one.size for one in ended)
            kept = len(ended)
            for record in ended:
                # the newest stays however large it is: nobody could have fetched anything of it
                is_newest = record is ended[-1]
                too_large = self._limits.keep_gib and size > self._limits.keep_gib * GIB and not is_newest
                if kept <= self._limits.keep_runs and not too_large:
                    break
                if await self._expire(record):
                    kept -= 1
                    size -= record.size

    async def finish(self) -> None:
        """Remove what a server that died was removing."""
        for record in self._ledger.index.leaving():
            await self._remove(record)

    async def _expire(self, record: Record) -> bool:
        async with record.lock:
            if record.state not in ENDED or record.task is not None or record.expired:  # it was resumed meanwhile
                return False
            try:
                if self._ledger.is_there(record):
                    FolderLock(self._ledger.folder(record)).release()
            except (LimbeckError, OSError):
                return False
            await self._ledger.leave(record, removed=False)  # first: what is removed was not there for anybody any more
            self._ledger.log(record).info("the run's folder is removed: newer runs need its room")
            await self._remove(record)
        return True

    async def _remove(self, record: Record) -> None:
        try:
            if self._ledger.is_there(record):
                await asyncio.to_thread(_remove, self._ledger.folder(record))
            self._ledger.workspace.recipe_file(record.run_id).unlink(missing_ok=True)
        except OSError as fault:  # the next server tries again
            self._ledger.log(record).warning("the run's folder cannot be removed: %s", fault)
            return
        record.removed = True
        await self._ledger.save(record)


def _size(folder: Path) -> int:
    """Bytes of a folder's files on the disk, links not followed."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return max(size, 1)


def _remove(folder: Path) -> None:
    """Remove a run's folder; its identity last, so that it is known as ours until then. Links are not followed."""
    if folder.is_symlink():  # somebody has put it there
        return
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != IDENTITY:
            path.unlink(missing_ok=True)
    (folder / IDENTITY).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
