"""A model folder without its weights in memory: where it lies, its digest, its size."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from platformdirs import user_cache_path

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest, sha256_file, write_json

TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
HUB_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def trust_remote_code() -> bool:
    """Whether the operator allows code that comes with a model; a recipe cannot."""
    return os.environ.get("LIMBECK_TRUST_REMOTE_CODE") == "1"


def model_folder(model: str, *, weights: bool = True) -> Path:
    """The local folder of `model`, fetched from the hub where it is not a folder. Raises MODEL_INVALID.

    Without `weights` these are not fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    give = "give the path of a folder with " + ("config.json and *.safetensors" if weights else "a tokenizer")
    if Path(model).is_absolute() or Path(model).exists() or model.count("/") > 1:
        raise _invalid(model, "no such folder", give)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES if weights else TOKENIZER_FILES))
    except Exception as error:  # the hub's client raises its own, requests' and plain OSErrors
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = f"{give}, or check the hub id and the network"
        raise _invalid(model, f"no such folder, and not on the hub: {first_line}", hint) from error


def text_config(folder: Path) -> Any:
    """The transformers config of the language model in `folder`. Raises MODEL_INVALID."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code(), local_files_only=True)
    except Exception as error:  # a missing or broken config.json, an unknown family, code that is not allowed
        said = shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise _invalid(str(folder), f"config.json cannot be used: {said}", "see that AutoConfig loads it") from error
    return config.get_text_config()


def max_length(config: Any) -> int:
    """Tokens that a model of `config` reads at most; 2²⁰ where the family has no limit."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    return next((int(value) for name in names if (value := getattr(config, name, None))), 2**20)


def eos_ids(folder: Path) -> set[int]:
    """Every id that ends a text: of config.json, of its text part, and of generation_config.json."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise _invalid(str(path), f"not JSON: {error}", "write the file anew with save_pretrained") from error
        for part in (content, content.get("text_config") or {}):
            value = part.get("eos_token_id")
            found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def _invalid(file: str, message: str, hint: str) -> LimbeckError:
    return LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, file=file, hint=hint)])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, by name. Raises MODEL_INVALID where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        hint = "Limbeck reads safetensors only: load the model with transformers and call save_pretrained"
        raise _invalid(str(folder), "the folder holds no *.safetensors", hint)
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
    with contextlib.suppress(OSError, LimbeckError):  # a cache that cannot be written only costs time
        write_json(note, {"file": key, "sha256": value})
    return value


def parameters(folder: Path) -> int:
    """Numbers stored in the weights (tied ones once), from the headers of the files."""
    return sum(math.prod(shape) for shape in shapes(folder).values())


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor of the weights, by name, from the headers of the files. Raises MODEL_INVALID."""
    found: dict[str, list[int]] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError(f"its header would be {length:,} bytes long")
                header = json.loads(file.read(length))
            found |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "it may be cut off, or a pointer of Git LFS: fetch it again"
            raise _invalid(str(path), f"is no safetensors file: {error}", hint) from error
    return found


def check_layers(layers: Sequence[int], count: int) -> None:
    """Raise MODEL_INVALID where `layers` are not distinct numbers of a teacher's `count` layers."""
    problems = []
    outside = sorted({index for index in layers if not 0 <= index < count})
    twice = sorted({index for index in layers if list(layers).count(index) > 1})
    if not layers:
        problems.append(Problem("no layer is named", field="student.layers", hint="name at least one"))
    if outside:
        text = f"the teacher has no layer {_listed(outside)}; it has {count}: 0 to {count - 1}"
        problems.append(Problem(text, field="student.layers", hint="count from 0"))
    if twice:
        text = f"layer {_listed(twice)} is named more than once"
        problems.append(Problem(text, field="student.layers", hint="name each layer once"))
    if problems:
        raise LimbeckError(Reason.MODEL_INVALID, problems=problems)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
