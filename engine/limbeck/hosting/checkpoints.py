"""Checkpoints of a run as clients see them. Imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from limbeck.v1 import training_service_pb2 as pb

FOLDER = "checkpoints/student"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints_of(run: Path) -> list[pb.Checkpoint]:
    """The complete checkpoints of the student in a run's folder, the oldest first. Reads no weights."""
    folder = run / FOLDER
    found = [_checkpoint(path, run) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((one for one in found if one is not None), key=lambda one: one.step)


def checkpoint_of(run: Path, step: int) -> pb.Checkpoint | None:
    """The complete checkpoint of a step; None where there is none, or none any more."""
    return _checkpoint(run / FOLDER / f"checkpoint-{step}", run)


def _checkpoint(folder: Path, run: Path) -> pb.Checkpoint | None:
    """What a folder is; None for what is no checkpoint, is not whole, or is being removed by rotation."""
    named, manifest = _NAME.fullmatch(folder.name), folder / "manifest.json"
    if named is None:
        return None
    try:
        files = json.loads(manifest.read_bytes())["files"]
        sizes = {str(name): int(file["bytes"]) for name, file in files.items()}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        time = Timestamp()
        time.FromNanoseconds(manifest.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    path = folder.relative_to(run).as_posix()
    return pb.Checkpoint(path=path, step=int(named[1]), bytes=sum(sizes.values()), time=time)
