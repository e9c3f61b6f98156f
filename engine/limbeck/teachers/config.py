"""What a recipe says of the `transformers` teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.interfaces import Config, ModelPath


class TransformersConfig(Config):
    """A Hugging Face causal language model with safetensors weights."""

    model: ModelPath = Field(description="Local folder, or id on the hub (fetched at the first use).")
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="Precision of weights and activations. `float32` gives scores good to 1e-5 on any machine; "
        "`bfloat16` halves memory and is the fast one on a GPU, with log-probabilities good to about 0.05; `auto` is "
        "what the folder was saved in.",
    )
    device: str = Field(
        "auto", description="Torch device, e.g. `cpu` or `cuda:1`; `auto` takes the first accelerator, else the CPU."
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto",
        description="Attention kernel. `auto` is `sdpa`, but `eager` for models that soft-cap attention logits, which "
        "`sdpa` leaves out.",
    )
    batch_tokens: int = Field(
        8192, ge=1, description="Padded tokens of a batch, prompts with their continuation; a longer one goes alone."
    )
