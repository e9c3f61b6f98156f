"""A teacher's output head as numbers: with it, hidden states give the exact full vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Names of the families' own factors, all between the projection and the soft-cap. HyperCLOVA X multiplies by what
# Granite divides by.
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_MULTIPLYING_FAMILIES = ("hyperclovax",)
_SOFT_CAPS = ("final_logit_softcapping", "output_logit_soft_cap")


@dataclass(frozen=True, slots=True)
class OutputHead:
    """logits = cap · tanh(z / cap) with z = scale · (W h + b); logits = z where `soft_cap` is None.

    `weight` f32 [v, d], `bias` f32 [v].
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None = None
    scale: float = 1.0
    soft_cap: float | None = None


def head_transform(config: Any) -> tuple[float, float | None]:
    """`scale` and `soft_cap` of a transformers text config."""
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= getattr(config, name, None) or 1.0
    for name in _DIVISORS:
        factor = getattr(config, name, None) or 1.0
        scale = scale * factor if config.model_type in _MULTIPLYING_FAMILIES else scale / factor
    caps = (getattr(config, name, None) for name in _SOFT_CAPS)
    return scale, next((cap for cap in caps if cap), None)
