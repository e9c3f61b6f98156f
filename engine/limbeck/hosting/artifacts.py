"""Files of a run that clients may fetch: found, opened beneath the run's folder, and known by their content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.runs.stage import Record

SHELVES = {"student": "train", "twin": "twin", "report": "report"}  # folders, by the stage that fills them
FILES = ("recipe.yaml", "resolved.yaml", "events.jsonl", "log.txt", "log.old.txt")
GROWING = ("events.jsonl", "log.txt")
PIECE = 1 << 20
MOST_FILES = 10_000
_KEPT = 4096  # digests that are remembered
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")  # control characters, backslash, bytes that are no UTF-8

Stamp = tuple[int, int, int]  # device, inode and time of the last change in nanoseconds


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a run. `settled`: nobody writes to it any more."""

    path: str
    size: int
    settled: bool


class OpenFile:
    """A file that is open for reading, as large as it was then. To be closed."""

    def __init__(self, descriptor: int, path: str) -> None:
        status = os.fstat(descriptor)
        self.path, self.size = path, status.st_size
        self.stamp: Stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
        self._descriptor = descriptor

    def again(self) -> OpenFile:
        """The same file as it was when this one was opened, to be closed on its own."""
        same = OpenFile(os.dup(self._descriptor), self.path)
        same.size, same.stamp = self.size, self.stamp
        return same

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on. Raises STORE_DAMAGED where the file has become shorter."""
        data = os.pread(self._descriptor, min(size, PIECE), offset)
        if not data:
            raise _other(self.path, f"it ends at byte {offset:,} now")
        return data

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def find(folder: Path, *, at_rest: bool) -> list[Found]:
    """Files of the run in `folder`, by path. `at_rest`: no process works on it.

    Names that could not be sent, or that mean something else to a client's system, are left out.
    """
    found = [Found(name, size, at_rest) for name in FILES if (size := _size(folder / name)) is not None]
    for shelf, stage in SHELVES.items():
        settled = at_rest or Record(folder, stage).complete
        found += [Found(path, size, settled) for path, size in _below(folder, shelf)]
    return sorted(found, key=lambda one: one.path)[:MOST_FILES]


def open_file(folder: Path, path: str) -> OpenFile:
    """Open a file of the run in `folder`. Raises ARTIFACT_UNKNOWN for whatever is none, links too."""
    parts = path.split("/")
    known = path in FILES or (len(parts) > 1 and parts[0] in SHELVES)
    if not known or _UNSAFE.search(path) or any(part in ("", "..") or part.startswith(".") for part in parts):
        raise _unknown(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        place = os.open(folder, flags | os.O_DIRECTORY)
        for part in parts[:-1]:
            above, place = place, -1
            try:
                place = os.open(part, flags | os.O_DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        try:
            descriptor = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=place)
        finally:
            os.close(place)
    except OSError as error:
        raise _unknown(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unknown(path)
    return OpenFile(descriptor, path)


class Digests:
    """sha256 of files, remembered by device, inode, size and time of change. Two files are read at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Stamp, int], bytes] = OrderedDict()
        self._told: OrderedDict[tuple[int, int, bytes], int] = OrderedDict()  # sizes by device, inode and digest
        self._room = asyncio.Semaphore(2)

    async def of(self, file: OpenFile) -> bytes:
        """sha256 of the file as large as it was when it was opened."""
        key = (file.stamp, file.size)
        if key not in self._known:
            await self._room.acquire()
            try:
                own = file.again()  # whoever asked may be gone, and have closed the file, while a thread still reads it
            except OSError:
                self._room.release()
                raise
            await asyncio.shield(asyncio.ensure_future(self._learn(key, own)))
        digest = self._known[key]
        self._known.move_to_end(key)
        self._told[(*file.stamp[:2], digest)] = file.size
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        while len(self._told) > _KEPT:
            self._told.popitem(last=False)
        return digest

    async def _learn(self, key: tuple[Stamp, int], file: OpenFile) -> None:
        """Read a file, which is closed then, and give its room back."""
        try:
            if key not in self._known:
                self._known[key] = await asyncio.to_thread(_sha256, file)
        finally:
            file.close()
            self._room.release()

    async def expected(self, file: OpenFile, digest: bytes) -> bytes:
        """As :meth:`of`, for a client that has a part of the file with sha256 `digest`; empty for none.

        Of a file that only grows it may be an earlier state, which is the file then. Raises STORE_DAMAGED for another.
        """
        told = self._told.get((*file.stamp[:2], digest)) if digest and file.path in GROWING else None
        if told is not None and told <= file.size:
            file.size = told
            return digest
        actual = await self.of(file)
        if digest and digest != actual:
            raise _other(file.path, "its sha256 is another now")
        return actual


def _sha256(file: OpenFile) -> bytes:
    digest, offset = hashlib.sha256(), 0
    while offset < file.size:
        data = file.read(offset, file.size - offset)
        digest.update(data)
        offset += len(data)
    return digest.digest()


def _below(folder: Path, shelf: str) -> Iterator[tuple[str, int]]:
    if (folder / shelf).is_symlink():
        return
    for parent, folders, names in os.walk(folder / shelf):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(parent, name)
            path = file.relative_to(folder).as_posix()
            if not name.startswith(".") and not _UNSAFE.search(path) and (size := _size(file)) is not None:
                yield path, size


def _size(path: Path) -> int | None:
    """Bytes of a plain file; None for whatever else is there."""
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


def _unknown(path: str) -> LimbeckError:
    hint = "ListArtifacts names those that there are"
    problem = Problem(f"{path[:200]!r} is no file of this run that can be fetched", field="path", hint=hint)
    return LimbeckError(Reason.ARTIFACT_UNKNOWN, problems=[problem])


def _other(path: str, what: str) -> LimbeckError:
    problem = Problem(f"{path} is another file than it was: {what}", field="path", hint="fetch it from its first byte")
    return LimbeckError(Reason.STORE_DAMAGED, problems=[problem])
