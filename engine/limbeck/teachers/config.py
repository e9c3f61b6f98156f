"""What a recipe says of the built-in teachers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.interfaces import Config, LocalPath, ModelPath


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


class LimbeckConfig(Config):
    """A teacher of another Limbeck server."""

    address: str | list[str] = Field(
        description="`host:port` of the server; several for replicas of one teacher, which are asked in turn."
    )
    teacher: str = Field(min_length=1, description="The teacher's name at the server.")
    token_file: LocalPath | None = Field(None, description="File with the token, where the server wants one.")
    tls_ca: LocalPath | None = Field(None, description="Certificates (PEM) to trust instead of the usual authorities.")
    tls_cert: LocalPath | None = Field(None, description="The client's own certificate (PEM), with `tls_key`.")
    tls_key: LocalPath | None = Field(None, description="The key of `tls_cert` (PEM).")
    insecure: bool = Field(False, description="No TLS. An address of this machine needs none anyway.")
    hidden_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="How hidden states are sent: `bfloat16` is half as large, each number good to 0.4 %."
    )
    retry_for: float = Field(
        300.0,
        gt=0,
        description="Seconds that a lost server is tried again without an answer, and that a teacher which starts is "
        "waited for.",
    )
