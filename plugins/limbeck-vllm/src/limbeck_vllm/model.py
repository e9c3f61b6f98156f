"""What the folders of a model and of its adapter say, and how the engine is to be started with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest, sha256_file
from limbeck.interfaces import TeacherInfo
from limbeck.teachers import folder as folders
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.frames import Start
from limbeck_vllm.probe import scores_token_ids

CAPABILITIES = frozenset({"generate", "generate_top_k", "top_k", "target"})
UNKNOWN_LENGTH = 2**20  # what limbeck.teachers.folder says of a family without a limit
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allows as the largest one
STEP = 512  # tokens of a step on a CPU: one that is scored takes 8 bytes for each id of the vocabulary


def start_of(config: VllmConfig, folder: Path) -> Start:
    """How the engine is started. Raises MODEL_INVALID."""
    arguments: dict[str, Any] = {
        "disable_log_stats": True,
        **config.engine,
        "skip_tokenizer_init": True,  # ids are sent
        "model": str(folder),
        "dtype": config.dtype,
        "max_model_len": max_model_len(config, folder),
        "trust_remote_code": folders.trust_remote_code(),
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": -1,
    }
    if config.lora is not None:
        rank = _adapter_rank(Path(config.lora))
        arguments = {"max_loras": 1, "max_lora_rank": rank} | arguments | {"enable_lora": True}
    on_cpu = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2 << 30,
        "max_num_batched_tokens": max(STEP, arguments.get("max_num_seqs") or 0),  # vLLM wants no fewer
    }
    return Start(arguments, config.lora, on_cpu)


def info_of(config: VllmConfig, folder: Path) -> TeacherInfo:
    """What the teacher is, read from the folders. Raises MODEL_INVALID."""
    from limbeck.data import Tokenizer

    text = folders.text_config(folder)
    tokenizer = Tokenizer.load(folder)
    weights = folders.weights_digest(folder)
    start = start_of(config, folder)
    if config.lora is not None:
        weights = digest([weights, *(sha256_file(Path(config.lora) / name) for name in ADAPTER)])
    return TeacherInfo(
        name="vllm",
        vocab_size=int(text.vocab_size),
        tokenizer_digest=tokenizer.digest,
        template_digest=tokenizer.template_digest,
        weights_digest=weights,
        max_length=start.arguments["max_model_len"] - 1,  # vLLM wants room for a token that it writes, to score too
        capabilities=CAPABILITIES | ({"token_ids"} if scores_token_ids(start) else set()),
        eos_ids=tuple(sorted({*folders.eos_ids(folder), *tokenizer.eos_ids})),
        bos_id=tokenizer.bos_id,
        temperatures=(1.0,),
        tail_exact=False,
        hidden_size=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        parameters=folders.parameters(folder),
    )


def max_model_len(config: VllmConfig, folder: Path) -> int:
    """Tokens of the engine's longest sequence: what the config asks, else the model's limit. Raises MODEL_INVALID."""
    if (asked := config.engine.get("max_model_len")) is not None:
        return int(asked)
    text = folders.text_config(folder)
    limit = folders.max_length(text)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond it vLLM stretches the positions of short sequences too
        limit = rope.get("original_max_position_embeddings") or limit
    if limit == UNKNOWN_LENGTH:
        hint = "write it: engine: {max_model_len: 4096}"
        raise _invalid(str(folder / "config.json"), "does not say how long a sequence may be", hint)
    return int(limit)


def _adapter_rank(folder: Path) -> int:
    """The smallest rank of vLLM's that holds the adapter. Raises MODEL_INVALID."""
    missing = [name for name in ADAPTER if not (folder / name).is_file()]
    if missing:
        hint = "give a folder that PEFT's save_pretrained wrote"
        raise _invalid(str(folder), f"is no LoRA adapter: it has no {' and no '.join(missing)}", hint)
    file = folder / ADAPTER[0]
    try:
        rank = int(json.loads(file.read_text())["r"])
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(
            str(file), f"its rank `r` cannot be read: {type(error).__name__}: {error}", "save it anew"
        ) from error
    fitting = [allowed for allowed in RANKS if allowed >= rank]
    if rank < 1 or not fitting:
        raise _invalid(str(file), f"its rank is {rank}, vLLM takes 1 to {RANKS[-1]}", "train a smaller adapter")
    return fitting[0]


def _invalid(file: str, message: str, hint: str) -> LimbeckError:
    return LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, file=file, hint=hint)])
