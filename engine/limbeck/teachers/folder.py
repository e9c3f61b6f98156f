"""A model folder without its weights in memory: where it lies, its digest, its size."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from platformdirs import user_cache_path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest, sha256_file, write_json

HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]


def trust_remote_code() -> bool:
    """Whether the operator allows code that comes with a model; a recipe cannot."""
    return os.environ.get("LIMBECK_TRUST_REMOTE_CODE") == "1"


def model_folder(model: str) -> Path:
    """The local folder of `model`, fetched from the hub where it is not a folder. Raises MODEL_INVALID."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's client raises its own, requests' and plain OSErrors
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "give the path of a folder with config.json and *.safetensors, or check the hub id and the network"
        problem = Problem(f"no such folder, and not on the hub: {first_line}", file=model, hint=hint)
        raise LimbeckError(Reason.MODEL_INVALID, problems=[problem]) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, by name. Raises MODEL_INVALID where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        hint = "Limbeck reads safetensors only: load the model with transformers and call save_pretrained"
        problem = Problem("the folder holds no *.safetensors", file=str(folder), hint=hint)
        raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
    return files


def weights_digest(folder: Path) -> str:
    """sha256 (hex) over the contents of the safetensors files. Remembered on disk by path, size and time of change."""
    return digest([[file.name, _remembered_sha256(file)] for file in weight_files(folder)])


def _remembered_sha256(file: Path) -> str:
    stat = file.stat()
    key = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    note = user_cache_path("limbeck") / "digests" / f"{digest(key)}.json"
    try:
        return str(json.loads(note.read_text())["sha256"])
    except (OSError, ValueError, KeyError):
        value = sha256_file(file)
    try:
        write_json(note, {"file": key, "sha256": value})
    except OSError:
        pass  # a cache that cannot be written only costs time
    return value


def parameters(folder: Path) -> int:
    """Numbers stored in the weights (tied ones once), from the headers of the files."""
    total = 0
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total
