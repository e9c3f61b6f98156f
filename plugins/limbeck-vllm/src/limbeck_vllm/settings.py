"""vLLM's own settings: which there are, and which the teacher decides."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.errors import nearest

_CODE = "would run code that a recipe names"
_FOLDER = "the model is a local folder"
PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "None": ((type(None),), "empty"),
}
REFUSED = {
    "model": "write it above, as the teacher's `model`",
    "dtype": "write it above, as the teacher's `dtype`",
    "enable_lora": "write `lora: PATH` above: it turns this on",
    "default_mm_loras": "write `lora: PATH` above",
    "tokenizer": "token ids are sent, no text",
    "tokenizer_mode": "token ids are sent, no text",
    "skip_tokenizer_init": "token ids are sent, no text",
    "model_weights": "the weights are those of `model`, whose digest is told",
    "hf_config_path": "the config is that of `model`",
    "runner": "a teacher generates",
    "convert": "a teacher generates",
    "logprobs_mode": "signals are log-probabilities before any sampling",
    "max_logprobs": "the recipe's largest top_k decides",
    "generation_config": "every sampling field is sent with each request",
    "override_generation_config": "every sampling field is sent with each request",
    "watermark_config": "texts are drawn from the model's own probabilities",
    "kv_sharing_fast_prefill": "vLLM computes wrong log-probabilities of prompts with it",
    "trust_remote_code": "only the operator can, by LIMBECK_TRUST_REMOTE_CODE=1",
    "revision": _FOLDER,
    "code_revision": _FOLDER,
    "tokenizer_revision": _FOLDER,
    "hf_token": "keys come from the environment: HF_TOKEN",
    "worker_cls": _CODE,
    "worker_extension_cls": _CODE,
    "scheduler_cls": _CODE,
    "logits_processors": _CODE,
    "model_class_overrides": _CODE,
    "io_processor_plugin": _CODE,
    "reasoning_parser_plugin": _CODE,
    "structured_outputs_config": _CODE,
    "log_config_file": _CODE,  # Python's logging calls what such a file names
    "logging_config": _CODE,
    "ec_manager_config": _CODE,
    "kv_transfer_config": _CODE,
    "ec_transfer_config": _CODE,
}


@cache
def known_settings() -> dict[str, str]:
    """vLLM's engine arguments with their types as it writes them; none where it is not there, or tells them otherwise.

    Read from its source: importing it takes many seconds and torch, and a recipe must be loaded without.
    """
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    try:
        classes = [node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.ClassDef)]
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        line.target.id: ast.unparse(line.annotation)
        for found in classes
        if found.name in ("EngineArgs", "AsyncEngineArgs")
        for line in found.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not line.target.id.startswith("_")
    }


def check_name(name: str) -> str:
    """`name` as it is. Raises ValueError for one that vLLM does not have, or that is not the recipe's to decide."""
    if name in REFUSED:
        raise ValueError(f"{name} cannot be set here: {REFUSED[name]}")
    known = known_settings()
    if known and name not in known:
        meant = nearest(name.strip("-").replace("-", "_"), sorted(known.keys() - REFUSED.keys()))
        raise ValueError(f"vLLM's engine has no setting {name}" + (f"; did you mean {meant}?" if meant else ""))
    return name


def check_value(name: str, value: Any) -> None:
    """Raise ValueError for a value of another kind than the plain one that vLLM wants, and for one that names code."""
    if name == "distributed_executor_backend" and "." in str(value):
        raise ValueError(f"{name} must be one of vLLM's own (mp, ray, uni, …): {value!r} {_CODE}")
    wanted = set(known_settings().get(name, "Any").split(" | "))
    if not wanted <= PLAIN.keys():
        return
    kinds = {kind for one in wanted for kind in PLAIN[one][0]}
    if type(value) not in kinds:
        allowed = " or ".join(sorted(PLAIN[one][1] for one in wanted - {"None"}))
        raise ValueError(f"{name} must be {allowed}, not {value!r}")
