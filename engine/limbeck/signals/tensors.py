"""A signal as tensors, for training loops of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import LimbeckError, Problem, Reason

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.signals.signal import Signal


def tensors_of(signal: Signal) -> dict[str, Tensor]:
    """See :meth:`limbeck.signals.Signal.to_torch`. Raises EXTRA_MISSING."""
    try:
        import torch
    except ModuleNotFoundError as error:
        problem = Problem("tensors need torch", hint='pip install "limbeck[train]"')
        raise LimbeckError(Reason.EXTRA_MISSING, problems=[problem]) from error
    # copies: what came over the wire is read-only, and torch takes no such memory
    return {name: torch.from_numpy(np.array(values, dtype)) for name, (values, dtype) in _arrays(signal).items()}


def _arrays(signal: Signal) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    if signal.top_k is not None:
        at = [signal.top_k.at(temperature) for temperature in signal.top_k.temperatures]
        found["ids"] = signal.top_k.ids, np.int64
        found["logprobs"] = np.stack([logprobs for _, logprobs, _ in at]), np.float32
        found["tails"] = np.stack([tail for _, _, tail in at]), np.float32
    if signal.target is not None:
        found["target"] = signal.target, np.float32
    if signal.token_ids is not None:
        found["token_ids"] = signal.token_ids.ids, np.int64
        found["token_logprobs"] = signal.token_ids.logprobs, np.float32
        if signal.token_ids.offsets is not None:
            found["offsets"] = signal.token_ids.offsets, np.int64
    if signal.samples is not None:
        found["sample_ids"] = signal.samples.ids, np.int64
        found["sample_counts"] = signal.samples.counts, np.int64
        found["sample_logprobs"] = signal.samples.logprobs, np.float32
    for layer, values in signal.hidden.items():
        found[f"hidden.{layer}"] = values, np.float32
    if signal.full is not None:
        found["full"] = signal.full, np.float32
    return found
