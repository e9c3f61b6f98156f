"""Models and teachers of the tests. An engine takes half a minute to start: tests share one where they can."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck_vllm.config import VllmConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")
REPOSITORY = Path(__file__).parents[3]
DATA = REPOSITORY / "tests" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The core's tests/data: tiny tokenizers and the inputs of the cases."""
    return DATA


@pytest.fixture(scope="session")
def gemma() -> Path:
    """The real Gemma 3 270M, of the demo or where LIMBECK_GEMMA says."""
    folder = Path(os.environ.get("LIMBECK_GEMMA", REPOSITORY / "examples/demo/.cache/gemma-3-270m"))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("no Gemma: python examples/demo/prepare.py, or LIMBECK_GEMMA=FOLDER")
    return folder


def tiny(folder: Path, *, tokenizer: str = "tok_a", **more: object) -> Path:
    """A tiny Llama of sizes that vLLM's kernels take, and 512 positions."""
    from limbeck.testing.tiny import tiny_model_folder

    sizes = {"layers": 2, "hidden": 64, "head_dim": 32, "seed": 1, "scale": 2.0} | more
    return tiny_model_folder(folder, DATA / tokenizer, **sizes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the tokenizer tok_a."""
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_config(tiny_folder: Path) -> VllmConfig:
    """The tiny model, read in pieces of 64 tokens: what is longer shows whether pieces are put together."""
    return VllmConfig(
        model=str(tiny_folder),
        dtype="float32",
        concurrency=6,
        engine={
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "kv_cache_memory_bytes": 1 << 28,
            "enable_log_requests": True,  # tells of requests that were aborted
        },
    )


@pytest.fixture(scope="session")
def vllm_teacher(tiny_config: VllmConfig) -> Iterator[object]:
    """The tiny model with an engine that all tests share; each asks from an event loop of its own."""
    from limbeck_vllm.teacher import VllmTeacher

    teacher = VllmTeacher(tiny_config)
    yield teacher
    asyncio.run(teacher.close())
