"""What a recipe says of the teacher `vllm`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from limbeck.interfaces import Config, LocalPath, ModelPath


class VllmConfig(Config):
    """A Hugging Face causal language model, run by an engine of vLLM on this machine."""

    model: ModelPath = Field(description="Local folder, or id on the hub (fetched at the first use).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of weights and activations; `auto` is what the folder was saved in."
    )
    lora: LocalPath | None = Field(None, description="Folder of a LoRA adapter (PEFT) that is applied to the model.")
    concurrency: int = Field(
        64, ge=1, description="Requests that the engine has at once; how many it computes together is `max_num_seqs`."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="More settings by vLLM's own names, e.g. `tensor_parallel_size`, `quantization`, "
        "`max_model_len`, `gpu_memory_utilization`.",
    )
