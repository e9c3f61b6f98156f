"""Files of a run, fetched into a folder: resumed where they stopped, checked, and put in place only when whole."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from limbeck.client.errors import unavailable
from limbeck.client.link import Link, Retries
from limbeck.client.records import Artifact, artifact_of, asked
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import disk_errors, existing_parent, fsync_folder, sha256_file
from limbeck.v1 import training_service_pb2 as pb

EVERYTHING = "."
MOST_NAME = 255  # bytes of a file's name, by Linux's own rule
_MOST_STEM = 200  # of it that the name of what came so far begins with: there must be room for the rest
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Fetching:
    """How far a fetch is: the file at work, and the bytes of all files, `done` of `total`, that are there."""

    path: str
    done: int
    total: int


async def list_artifacts(link: Link, run_id: str) -> list[Artifact]:
    """The files of a run that can be fetched, by path."""
    answer = await link.ask("ListArtifacts", asked(pb.ListArtifactsRequest, run_id=run_id))
    return [artifact_of(message) for message in answer.artifacts]


async def fetch(
    link: Link, run_id: str, folder: str | Path, path: str, told: Callable[[Fetching], object] | None
) -> Path:
    """See :meth:`limbeck.client.AsyncClient.fetch`."""
    root = Path(folder)
    wanted = path.strip("/") if path.strip("/") not in ("", EVERYTHING) else EVERYTHING
    artifacts = _chosen(await list_artifacts(link, run_id), wanted)
    places = _places(root, artifacts)
    total, before = sum(artifact.size for artifact in artifacts), 0
    for artifact, place in zip(artifacts, places, strict=True):

        def tell(done: int, artifact: Artifact = artifact, before: int = before) -> None:
            if told is not None:
                told(Fetching(artifact.path, min(before + done, total), total))

        tell(0)
        try:
            if not await asyncio.to_thread(_is_there, place, artifact):
                await _File(link, run_id, artifact, place, tell).fetch()
        except OSError as error:
            problem = Problem(f"cannot be written: {error.strerror or error}", file=str(place))
            raise LimbeckError(Reason.FOLDER_NOT_OURS, "The files cannot lie there.", [problem]) from None
        before += artifact.size
        tell(0, artifact, before)
    return root if wanted == EVERYTHING else root / wanted


# ------------------------------------------------------------------------------------------------------------- paths


def _chosen(artifacts: Sequence[Artifact], wanted: str) -> list[Artifact]:
    """The file, or the files of the folder, that is wanted. Raises ARTIFACT_UNKNOWN where there is none."""
    found = [one for one in artifacts if wanted in (EVERYTHING, one.path) or one.path.startswith(f"{wanted}/")]
    if not found:
        tops = sorted({one.path.partition("/")[0] for one in artifacts})
        hint = f"there are {', '.join(tops)}" if tops else "there is nothing to fetch yet"
        problem = Problem(f"the run has no file and no folder {wanted}", field="path", hint=hint)
        raise LimbeckError(Reason.ARTIFACT_UNKNOWN, problems=[problem])
    return found


def _places(root: Path, artifacts: Sequence[Artifact]) -> list[Path]:
    """Where each file goes, below `root`. Nothing was written yet when a path that leads elsewhere is refused."""
    bad = [one.path for one in artifacts if not _is_inside(one.path)]
    paths = [one.path for one in artifacts]
    folders = {path.rpartition("/")[0] for path in paths}
    bad += [path for path in paths if paths.count(path) > 1 or any(f"{at}/".startswith(f"{path}/") for at in folders)]
    if bad:
        problems = [Problem(f"{path!r} is no path of a file in the run's folder") for path in dict.fromkeys(bad)]
        raise LimbeckError(
            Reason.INTERNAL, "The server names files that lead elsewhere: nothing was fetched.", problems
        )
    places = [root.joinpath(*path.split("/")) for path in paths]
    hint = "move it away, or fetch into another folder"
    problems = [
        Problem("is a link: what is fetched would lie elsewhere", file=str(above), hint=hint)
        for above in sorted(
            {root.joinpath(*at.parts) for path in paths for at in list(PurePosixPath(path).parents)[:-1]}
        )
        if above.is_symlink()
    ]
    problems += [
        Problem("is a folder, and a file of this name is to be fetched", file=str(place), hint="move it away")
        for place in places
        if place.is_dir() and not place.is_symlink()
    ]
    if problems:
        raise LimbeckError(Reason.FOLDER_NOT_OURS, "The files cannot lie there.", problems)
    return places


def _is_inside(path: str) -> bool:
    """Whether a path of a server is relative, goes down only, and has no sign that means something elsewhere."""
    parts = path.split("/")
    return not _FORBIDDEN.search(path) and all(
        part not in ("", ".", "..") and len(part.encode()) <= MOST_NAME for part in parts
    )


def _is_there(place: Path, artifact: Artifact) -> bool:
    """Whether the file was fetched before."""
    if artifact.sha256 is None or place.is_symlink() or not place.is_file():
        return False
    return place.stat().st_size == artifact.size and sha256_file(place) == artifact.sha256


# ------------------------------------------------------------------------------------------------------------- files


class _File:
    """One file. What came of it is kept beside it, under a name with its checksum, until it is whole."""

    def __init__(self, link: Link, run_id: str, artifact: Artifact, place: Path, tell: Callable[[int], object]) -> None:
        self._link, self._run_id, self._artifact, self._place, self._tell = link, run_id, artifact, place, tell
        self._stem = f".{place.name}"
        if len(place.name.encode()) > _MOST_STEM:
            self._stem = f".{hashlib.sha256(place.name.encode()).hexdigest()}"
        known = f".{artifact.sha256[:16]}" if artifact.sha256 else ""
        self._partial = place.with_name(f"{self._stem}{known}.partial")
        self._sha256 = artifact.sha256
        self._size = artifact.size
        self._hash = hashlib.sha256()
        self._there = 0
        self._file: IO[bytes] | None = None

    async def fetch(self) -> None:
        """Over as many connections as it takes. Raises STORE_DAMAGED for bytes that are not the file's, twice."""
        retries, again = Retries(self._link), True
        with disk_errors(existing_parent(self._place.parent), self._size):
            try:
                await asyncio.to_thread(self._open)
                while True:
                    try:
                        if not (self._artifact.sha256 and self._there == self._size):
                            await self._connected(retries)
                        await asyncio.to_thread(self._finish)
                        return
                    except LimbeckError as error:
                        if error.reason is Reason.STORE_DAMAGED and (again or self._grows) and self._there:
                            again = False
                            self._restart()
                        else:
                            await asyncio.sleep(retries.delay(error))
            finally:
                if self._file is not None:
                    self._file.close()

    @property
    def _grows(self) -> bool:
        """Whether the run may still change it: what was sent before may be of another file, and that is no fault."""
        return self._artifact.sha256 is None and self._there < self._size

    async def _connected(self, retries: Retries) -> None:
        request = asked(
            pb.DownloadArtifactRequest,
            run_id=self._run_id,
            path=self._artifact.path,
            offset=self._there,
            sha256=bytes.fromhex(self._sha256) if self._sha256 and self._there else b"",
        )
        call = self._link.call("DownloadArtifact", request)
        began = False
        try:
            while (response := await self._link.read(call)) is not None:
                kind = response.WhichOneof("kind")
                if kind == "started":
                    self._started(artifact_of(response.started))
                    began = True
                elif kind == "data":
                    if not began or self._there + len(response.data) > self._size:
                        raise self._wrong(f"more came than its {self._size:,} bytes")
                    await asyncio.to_thread(self._write, response.data)
                    retries.progress()
                    self._tell(self._there)
        finally:
            call.cancel()
        if not began or self._there < self._size:
            raise unavailable(self._link.name, f"the call ended after {self._there:,} of {self._size:,} bytes")

    def _started(self, stated: Artifact) -> None:
        """What comes must be what was listed, and what was begun; a file that grows is what it is at the start."""
        if stated.path != self._artifact.path or stated.sha256 is None:
            raise self._wrong(f"{stated.path!r} came, its checksum {stated.sha256 or 'unknown'}")
        if (self._there or self._artifact.sha256) and (stated.sha256, stated.size) != (self._sha256, self._size):
            raise self._wrong("it is another file now than when it was listed")
        self._sha256, self._size = stated.sha256, stated.size

    # ---------------------------------------------------------------------------------------------------- on this disk

    def _open(self) -> None:
        """Open what is there, and count what is good to go on from."""
        self._place.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(self._partial, flags, 0o666), "r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = Problem("another process fetches it", file=str(self._place), hint="wait for it")
            raise LimbeckError(Reason.RUN_LOCKED, "The file is being fetched already.", [problem]) from None
        size = os.fstat(self._file.fileno()).st_size
        if self._artifact.sha256 is None or size > self._size:
            self._file.truncate(0)
            return
        while piece := self._file.read(1 << 20):
            self._hash.update(piece)
            self._there += len(piece)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hash.update(data)
        self._there += len(data)

    def _restart(self) -> None:
        """From the first byte."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate(0)
        self._hash, self._there = hashlib.sha256(), 0

    def _finish(self) -> None:
        """Put the file in its place. Raises STORE_DAMAGED where its bytes are not those that were stated."""
        assert self._file is not None
        found = self._hash.hexdigest()
        if found != self._sha256:
            raise self._wrong(f"its bytes have the checksum {found}, {self._sha256} is stated")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self._place)
        for left in self._place.parent.glob(f"{_quoted(self._stem)}.????????????????.partial"):
            left.unlink(missing_ok=True)  # of a file that it was before
        fsync_folder(self._place.parent)

    def _wrong(self, message: str) -> LimbeckError:
        hint = "fetch it again; if that does not help, see the server's disk"
        return LimbeckError(
            Reason.STORE_DAMAGED,
            "A file did not arrive whole.",
            [Problem(message, field=self._artifact.path, hint=hint)],
        )


def _quoted(name: str) -> str:
    """A name as it is written in a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)
