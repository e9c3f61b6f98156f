"""Files that survive a crash: atomic writes, append-only JSON lines, locks, digests of contents."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from limbeck.errors import LimbeckError, Problem, Reason


@contextmanager
def disk_errors(path: Path, need: int | None = None) -> Iterator[None]:
    """Turn a full disk into DISK_FULL with the path, the need (bytes, if known) and the free space."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = shutil.disk_usage(existing_parent(path)).free
        wanted = f"{need:,} bytes were to be written, " if need is not None else ""
        hint = "free some space and give the same command again; what was written before is kept"
        problem = Problem(f"{wanted}{free:,} bytes are free", file=str(path), hint=hint)
        raise LimbeckError(Reason.DISK_FULL, problems=[problem]) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: a limit on the size of files


def _is_full_disk(error: Exception) -> bool:
    """Also for libraries that hide it: safetensors gives the number in its text, torch.save only that it failed."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    if isinstance(error, LimbeckError):
        return False
    text = str(error)
    torch_failed = "PytorchStreamWriter failed writing" in text or "unexpected pos" in text
    return torch_failed or any(f"(os error {number})" in text for number in _FULL)


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: a neighbour, fsync, rename. Raises DISK_FULL."""
    raw = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path, len(raw)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, for people too: indented, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_file_digests: dict[tuple[str, int, int], str] = {}


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's content, remembered in this process by path, size and time of change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _file_digests:
        with path.open("rb") as file:
            _file_digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_digests[key]


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of an append-only log of ours, without changing it; a torn last line is left out.

    Raises LOG_DAMAGED for anything before the last line that is not a JSON object, such as a hole of zeros.
    """
    return enumerate((value for _, value in placed_json_lines(path)), 1)


def placed_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte where its line begins, object) of an append-only log of ours; see :func:`read_json_lines`."""
    if not path.exists():
        return
    place = 0
    for line, raw, complete in _lines(path):
        value = _parse(raw)
        if value is None:
            if not complete:
                return
            raise _damaged(path, line, raw)
        yield place, value
        place += len(raw)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            yield line, raw, raw.endswith(b"\n")


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:  # bad UTF-8 is one too
        return None
    return value if isinstance(value, dict) else None


def _damaged(path: Path, line: int, raw: bytes) -> LimbeckError:
    what = "a hole of zero bytes" if b"\0" in raw else "not a JSON object"
    hint = "a crash or a disk fault left it; lines before it are good. Move the file away, or mend the line, then go on"
    return LimbeckError(Reason.LOG_DAMAGED, problems=[Problem(what, file=str(path), line=line, hint=hint)])


class AppendLog:
    """An append-only file of JSON lines. Opening it mends a torn tail, and says so in `repaired`.

    A last line without its newline is finished where it is whole JSON, and cut where it is not. Damage before the last
    line raises LOG_DAMAGED and leaves the file alone. Not for two writers: the run's lock sees to that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repaired: str | None = None
        self.last: dict[str, Any] | None = None
        self.count = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._mend()
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def _mend(self) -> None:
        if not self.path.exists():
            return
        good_bytes, finished = 0, True
        for line, raw, complete in _lines(self.path):
            value = _parse(raw)
            if value is None and complete:
                raise _damaged(self.path, line, raw)
            if value is None:
                os.truncate(self.path, good_bytes)
                self.repaired = f"{self.path.name}: the last line ({line}) was torn by a crash and was cut off"
                return
            good_bytes += len(raw)
            self.last, self.count = value, line
            finished = complete
        if not finished:  # only now: a reader that is at the end of the file would go on with what is appended
            with self.path.open("ab") as file:
                file.write(b"\n")
            self.repaired = f"{self.path.name}: the last line ({self.count}) lacked its newline, which was added"

    def append(self, value: dict[str, Any] | str, *, sync: bool = True) -> None:
        """Append one object (or its JSON text, one line). With `sync` it is on disk when this returns."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        raw = text.encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        with disk_errors(self.path, len(raw)):
            try:
                written = self._file.write(raw)
                if written != len(raw):
                    raise OSError(errno.ENOSPC, "short write")
                if sync:
                    os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), size)  # never leave half a line before a later one
                raise
        self.count += 1

    def sync(self) -> None:
        """Put everything appended so far on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unlinked(path: str, flags: int) -> int:
    """An opener, for `open`, that does not follow a link; OSError ELOOP where there is one."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class FolderLock:
    """One writer for a folder. The kernel drops the lock with the process, however it dies.

    Raises RUN_LOCKED where there is one, FOLDER_NOT_OURS where a link would have another file written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._file = open(folder / ".lock", "a+", opener=unlinked)  # noqa: SIM115
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            problem = Problem("its .lock is a link", file=str(folder), hint="remove the link")
            raise LimbeckError(Reason.FOLDER_NOT_OURS, problems=[problem]) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            hint = "wait for it, or stop it with Ctrl-C or SIGTERM"
            problem = Problem(f"process {owner} writes here", file=str(folder), hint=hint)
            raise LimbeckError(Reason.RUN_LOCKED, problems=[problem]) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process write; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
