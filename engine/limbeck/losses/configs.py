"""Configs of the built-in losses. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from limbeck.interfaces import LossConfig, Scheduled, TokenLossConfig


class JsdConfig(TokenLossConfig):
    """Generalised Jensen-Shannon divergence."""

    teacher_weight: Annotated[Scheduled, Field(gt=0, lt=1)] = Field(
        0.5,
        description="Share w of the teacher in the mixture m = w·p + (1−w)·q. `beta`, its name in TRL, is accepted. "
        "May be a schedule.",
    )

    @model_validator(mode="before")
    @classmethod
    def _beta(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "beta" not in data or "teacher_weight" in data:
            return data
        if data["beta"] in (0, 1):
            plugin = "reverse_kl" if data["beta"] else "forward_kl"
            raise ValueError(f"beta {data['beta']} is {plugin}: use that plugin")
        return {"teacher_weight" if key == "beta" else key: value for key, value in data.items()}


class ContrastiveConfig(LossConfig):
    """Direct preference optimisation."""

    beta: Annotated[Scheduled, Field(gt=0)] = Field(
        0.1, description="How strongly the student is held to the reference (Rafailov et al., 2023). May be a schedule."
    )


LayerPair = Annotated[list[int], Field(min_length=2, max_length=2)]


class HiddenMseConfig(LossConfig):
    """Mean squared error of hidden states."""

    layers: list[LayerPair] = Field(
        min_length=1,
        description="Pairs [student layer, teacher layer]: 0 the embeddings, i the output of block i, −1 the last "
        "one after the final norm.",
    )
