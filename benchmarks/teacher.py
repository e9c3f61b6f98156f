"""Tokens a second of a teacher: score (top 64 and target) and generate.

    python benchmarks/teacher.py MODEL [--rows 32] [--tokens 128] [--new 64] [--batch-tokens 8192] [--dtype float32]

MODEL is a folder that `transformers` loads. Ids are random: the time does not depend on what they say.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from contextlib import aclosing

import numpy as np
from rich.console import Console
from rich.table import Table

from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.teachers import TransformersConfig
from limbeck.teachers.transformers import TransformersTeacher


async def measure(options: argparse.Namespace) -> Table:
    config = TransformersConfig(
        model=options.model, dtype=options.dtype, device=options.device, batch_tokens=options.batch_tokens
    )
    teacher = TransformersTeacher(config)
    info = teacher.info()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, info.vocab_size, options.tokens).astype(np.int32) for _ in range(options.rows)]
    want = Want(top_k=min(64, info.vocab_size), temperatures=(1.0, 2.0), target=True)
    items = [ScoreItem(i, ids, 0, len(ids) - 1) for i, ids in enumerate(rows)]
    prompts = [Prompt(i, ids[:32]) for i, ids in enumerate(rows)]
    table = Table("what", "tokens", "seconds", "tokens a second", "peak memory")

    def add(what: str, tokens: int, seconds: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        rate = f"{tokens / seconds:,.0f}" if tokens else ""
        table.add_row(what, f"{tokens:,}" if tokens else "", f"{seconds:.1f}", rate, f"{peak / 2**20:,.0f} MiB")

    start = time.perf_counter()
    async with aclosing(teacher.score(items[:1], want)) as answers:
        async for _ in answers:
            pass
    add("load, one row", 0, time.perf_counter() - start)

    start = time.perf_counter()
    tokens = 0
    async with aclosing(teacher.score(items, want)) as answers:
        async for _, signal in answers:
            tokens += signal.n
    add("score, k = 64, two temperatures", tokens, time.perf_counter() - start)

    for name, temperature in (("greedy", 0.0), ("drawn", 1.0)):
        start = time.perf_counter()
        tokens = 0
        sampling = Sampling(max_new_tokens=options.new, temperature=temperature)
        async with aclosing(teacher.generate(prompts, sampling)) as texts:
            async for text in texts:
                tokens += len(text.ids)
        add(f"generate, {name}", tokens, time.perf_counter() - start)
    await teacher.close()
    table.title = f"{options.model}: {info.parameters:,} parameters, vocabulary {info.vocab_size:,}, {options.dtype}"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    Console(width=120).print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
