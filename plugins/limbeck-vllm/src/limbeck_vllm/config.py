"""What a recipe says of the teacher `vllm`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from limbeck.interfaces import Config, LocalPath, ModelPath
from limbeck_vllm.settings import check_name, check_value


class VllmConfig(Config):
    """A Hugging Face causal language model, run by an engine of vLLM on this machine."""

    model: ModelPath = Field(description="Local folder, or id on the hub (fetched at the first use).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of weights and activations; `auto` is what the folder was saved in."
    )
    lora: LocalPath | None = Field(
        None, description="Folder of a LoRA adapter (adapter_config.json, adapter_model.safetensors) to apply."
    )
    concurrency: int = Field(
        64,
        ge=1,
        description="Sequences of a call that the engine has at once; how many of them it computes together is its "
        "`max_num_seqs`.",
    )
    engine: dict[Annotated[str, AfterValidator(check_name)], Any] = Field(
        default_factory=dict,
        description="Settings by vLLM's own names: `tensor_parallel_size`, `quantization`, `max_model_len`, "
        "`gpu_memory_utilization`, …",
    )

    @field_validator("engine")
    @classmethod
    def _values(cls, engine: dict[str, Any]) -> dict[str, Any]:
        for name, value in engine.items():
            check_value(name, value)
        length = engine.get("max_model_len", 2)
        if type(length) is not int or length < 2:  # −1, as much as fits, would not let the teacher tell its length
            raise ValueError(f"max_model_len must be a whole number of at least 2, not {length!r}")
        return engine
