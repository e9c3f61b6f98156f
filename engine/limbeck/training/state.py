"""The tensors of a checkpoint: weights, optimizer, learning rate and random generators. No pickle is executed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from limbeck.errors import LimbeckError, Problem, Reason

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write all parameters and buffers, those of the losses too; shared ones once."""
    save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what :func:`save_weights` wrote. Raises RESUME_REFUSED where it is of another model."""
    try:
        load_model(model, folder / WEIGHTS)
    except RuntimeError as error:
        problem = Problem("the checkpoint is of another model", file=str(folder), hint="start a new run")
        raise LimbeckError(Reason.RESUME_REFUSED, problems=[problem]) from error


def check_weights(model: nn.Module, step: int) -> None:
    """Raise LOSS_NOT_FINITE where a parameter is NaN or infinite: such a model is never saved."""
    with torch.no_grad():
        bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if bad:
        text = f"after step {step}, {len(bad)} parameters are not finite: {', '.join(bad[:5])}"
        hint = "lower the learning rate or max_grad_norm; the checkpoints before this step are good"
        raise LimbeckError(Reason.LOSS_NOT_FINITE, problems=[Problem(text, field="training", hint=hint)])


def rng_state() -> dict[str, Any]:
    """The global generators of Python, numpy and torch, in types that ``torch.load(weights_only=True)`` reads."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937", "numpy's global generator"
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back to where :func:`rng_state` found them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def load(file: Path) -> Any:
    """Read a file that torch wrote, tensors and plain values only."""
    return torch.load(file, map_location="cpu", weights_only=True)
