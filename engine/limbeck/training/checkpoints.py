"""Checkpoints that exist only when they are whole. Imports no torch.

A checkpoint is written into a hidden staging folder, each file fsynced; `manifest.json` (sizes and sha256) comes last;
then the folder is renamed to `checkpoint-STEP`. What has no valid manifest is not a checkpoint, whatever it looks like.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.files import disk_errors, fsync_folder, write_json

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFT_OVER = re.compile(r"\.checkpoint-\d+\.(partial|deleted)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: its folder, the optimizer steps finished, and what was noted of the training."""

    folder: Path
    step: int
    note: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What a resume finds: the newest whole checkpoint, and those newer than it with their faults."""

    checkpoint: Checkpoint | None
    rejected: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one training in `folder`. One writer: the run's lock sees to that.

    `limit`: how many whole ones are kept, None for all.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self._limit = limit
        self._faulty: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove what a crash left of a save or of a deletion. Whole checkpoints and foreign files stay."""
        for path in self.folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)

    def newest(self) -> Found:
        """The newest checkpoint whose manifest and checksums hold. Reads every byte of it; deletes nothing."""
        rejected: list[str] = []
        for step, folder in reversed(self._folders()):
            fault = fault_of(folder, contents=True)
            if fault is None:
                return Found(_read(folder, step), tuple(rejected))
            self._faulty.add(folder.name)
            rejected.append(f"{folder.name}: {fault}")
        return Found(None, tuple(rejected))

    def staging(self, step: int) -> Path:
        """The folder that the files of a checkpoint are written into, empty."""
        partial = self.folder / f".checkpoint-{step}.partial"
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        return partial

    def commit(self, step: int, note: dict[str, Any]) -> tuple[Checkpoint, int]:
        """Make the staged files a checkpoint, then drop the oldest beyond the limit. Returns it and its bytes.

        A folder of the same name, faulty as it must be, is moved aside and kept.
        """
        partial = self.folder / f".checkpoint-{step}.partial"
        files: dict[str, tuple[int, str]] = {}
        with disk_errors(partial):
            for path in sorted(p for p in partial.rglob("*") if p.is_file()):
                files[path.relative_to(partial).as_posix()] = (path.stat().st_size, _sealed(path))
            listed = {name: {"bytes": size, "sha256": checksum} for name, (size, checksum) in files.items()}
            write_json(partial / MANIFEST, {"format": FORMAT, "step": step, "note": note, "files": listed})
        target = self.folder / f"checkpoint-{step}"
        if target.exists():
            _move_aside(target)
        partial.rename(target)
        fsync_folder(self.folder)
        self._faulty.discard(target.name)
        self._rotate()
        return Checkpoint(target, step, note), sum(size for size, _ in files.values())

    def save(self, step: int, write: Callable[[Path], None], note: dict[str, Any]) -> tuple[Checkpoint, int]:
        """Stage, let `write` put its files there, commit."""
        partial = self.staging(step)
        with disk_errors(partial):
            write(partial)
        return self.commit(step, note)

    def _folders(self) -> list[tuple[int, Path]]:
        """(step, folder) of all that are named like a checkpoint, oldest first."""
        folders = (path for path in self.folder.iterdir() if path.is_dir())
        named = [(_NAME.fullmatch(path.name), path) for path in folders]
        return sorted((int(match[1]), path) for match, path in named if match is not None)

    def _rotate(self) -> None:
        """Keep the newest whole ones. Only what carries a good manifest counts, and only that is ever deleted."""
        if self._limit is None:
            return
        whole = [folder for _, folder in self._folders() if self._looks_whole(folder)]
        for folder in whole[: -max(self._limit, 1)]:
            doomed = self.folder / f".{folder.name}.deleted"
            folder.rename(doomed)  # a crash while files go must not leave half a checkpoint under its name
            shutil.rmtree(doomed)

    def _looks_whole(self, folder: Path) -> bool:
        return folder.name not in self._faulty and fault_of(folder, contents=False) is None


def fault_of(folder: Path, *, contents: bool) -> str | None:
    """What is wrong with a checkpoint, None for nothing. `contents`: compare checksums too, not only sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        if manifest["format"] != FORMAT:
            return f"manifest.json has format {manifest['format']}; this version reads {FORMAT}"
        if folder.name != f"checkpoint-{manifest['step']}":
            return f"manifest.json is of step {manifest['step']}"
    except FileNotFoundError:
        return "it has no manifest.json: its save was cut off" if any(folder.iterdir()) else "it is empty"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if contents and _sha256(path) != checksum:
            return f"the checksum of {name} is wrong"
    return None


def _read(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(folder, step, json.loads((folder / MANIFEST).read_bytes()).get("note", {}))


def _sha256(path: Path) -> str:
    # Not limbeck.files.sha256_file: it trusts size and time of change, and this one is here to find damage.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(path: Path) -> str:
    """Put a file on disk; its sha256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _sha256(path)


def _move_aside(folder: Path) -> None:
    count = 1
    while (aside := folder.with_name(f"{folder.name}.faulty-{count}")).exists():
        count += 1
    folder.rename(aside)
