"""What a run will need: steps, bytes of disk, bytes of memory. Estimates, from sizes that need no weights."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.files import existing_parent
from limbeck.interfaces import TeacherInfo
from limbeck.runs.contents import Contents
from limbeck.runs.label import holdout_want, stored_want
from limbeck.teachers.folder import parameters, shapes, text_config

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adafactor": 1, "sgd": 0}  # a parameter


@dataclass(frozen=True)
class Sizes:
    """Parameters of the student; `vocab_size` of its head."""

    student: int
    vocab_size: int


def read_sizes(contents: Contents) -> Sizes:
    """Count the student's parameters: from the headers of the weights, or from a config without making any."""
    spec = contents.recipe.student
    folder = contents.student_folder
    if folder is not None:
        count = parameters(folder) if spec.layers is None else _kept(folder, set(spec.layers))
        return Sizes(count, int(text_config(folder).vocab_size))
    return _from_config(contents)


def _kept(folder: Path, layers: set[int]) -> int:
    found = [(_BLOCK.search(name), math.prod(shape)) for name, shape in shapes(folder).items()]
    return sum(count for block, count in found if block is None or int(block[1]) in layers)


def _from_config(contents: Contents) -> Sizes:
    import torch

    from limbeck.training import build_student

    with torch.device("meta"):  # shapes without numbers
        model = build_student(contents.recipe.student, None, tokenizer_folder=contents.tokenizer_folder).model
    return Sizes(sum(p.numel() for p in model.parameters()), int(model.config.get_text_config().vocab_size))


def steps(recipe: Recipe, figures: Mapping[str, float]) -> dict[str, float]:
    """Optimizer steps, and rows of one."""
    training = recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    per_epoch = max(1, math.ceil(figures.get("train_sequences", 0) / rows))
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    return {"steps": total, "rows_per_step": rows, "steps_per_epoch": per_epoch}


def disk(recipe: Recipe, sizes: Sizes, info: TeacherInfo | None, figures: Mapping[str, float]) -> dict[str, int]:
    """Bytes that the run will write, by part, and what is free. Signals are unknown (0) before the rows are there."""
    width = 4 if recipe.student.dtype == "float32" else 2
    one = sizes.student * (width + _OPTIMIZER_BYTES[recipe.training.optim])
    trainings = 2 if recipe.evaluation.twin else 1
    parts = {
        "checkpoints": trainings * (recipe.training.save_total_limit + 1) * one,
        "models": trainings * 2 * sizes.student * width,  # an export is written whole before it replaces a former one
        "signals": 0,
        "sequences": int(13 * figures.get("tokens", 0)),
    }
    if info is not None and figures:
        share = figures.get("holdout_sequences", 0) / max(
            1, figures.get("holdout_sequences", 0) + figures.get("train_sequences", 0)
        )
        rows = {"train": figures["trained_tokens"] * (1 - share), "holdout": figures["trained_tokens"] * share}
        wants = {"train": stored_want(recipe), "holdout": holdout_want(recipe, info)}
        high = max(0, (info.vocab_size - 1).bit_length() - 16)
        for split, want in wants.items():
            if want is not None:
                row = want.top_k * 4 + want.top_k * high / 8 + 4 * len(want.temperatures) + 4 * want.target
                parts["signals"] += int(rows[split] * row)
    free = shutil.disk_usage(existing_parent(recipe.output)).free
    return {**parts, "need_bytes": sum(parts.values()), "free_bytes": free}


def memory(recipe: Recipe, sizes: Sizes, info: TeacherInfo | None) -> dict[str, int]:
    """Bytes at the peak of training and of scoring, without activations, and what is free (0: unknown)."""
    width = 4 if recipe.student.dtype == "float32" else 2
    training = sizes.student * (2 * width + _OPTIMIZER_BYTES[recipe.training.optim])
    teacher = 4 * (info.parameters or 0) if info is not None else 0
    online = recipe.signals.source == "online"
    return {
        "training_bytes": training + (teacher if online else 0),
        "scoring_bytes": teacher,
        "available_bytes": _available(),
    }


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
