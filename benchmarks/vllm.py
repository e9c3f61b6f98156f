"""vLLM's engine against transformers as a teacher of the same model: score and generate, memory, agreement.

    python benchmarks/vllm.py MODEL [--rows 16] [--tokens 256] [--new 64] [--k 64] [--dtype float32] [--rounds 3]

MODEL is a folder that both load. Rows are cut from this repository's guides. Each teacher runs in a process of its own,
whose memory is counted with all that it starts: the most, over what was there before the model. Times are the best of
the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from limbeck.data import Tokenizer
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Teacher, TeacherPlugin, Want
from limbeck.plugins import load_plugins

GUIDES = Path(__file__).resolve().parents[1] / "docs"
TEACHERS = ("transformers", "vllm")


def rows_of(options: argparse.Namespace) -> list[Any]:
    """Rows int32 [tokens] of real text, the leading <bos> there."""
    tokenizer = Tokenizer.load(Path(options.model))
    ids = tokenizer.encode_prompt("\n".join(path.read_text("utf-8") for path in sorted(GUIDES.glob("*.md"))))
    lead = ids[: int(tokenizer.bos_id is not None)]
    own = options.tokens - len(lead)
    return [np.concatenate([lead, ids[1 + i * own : 1 + (i + 1) * own]]) for i in range(options.rows)]


class Peak:
    """The most resident memory of this process and all that it started, bytes, looked at 20 times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.05):
            found = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    found += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, found)


async def taken(answers: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(answers) as found:
        return [answer async for answer in found]


async def measured(options: argparse.Namespace, name: str, folder: Path) -> None:
    """Ask one teacher everything; write figures.json and scores.npz into `folder`."""
    rows = rows_of(options)
    plugin = load_plugins().get("teacher", name)
    assert isinstance(plugin, TeacherPlugin)
    before, peak = psutil.Process().memory_info().rss, Peak()
    teacher = plugin.factory(plugin.config.model_validate({"model": options.model, "dtype": options.dtype}))
    assert isinstance(teacher, Teacher)
    items = [ScoreItem(i, ids, 0, len(ids) - 1) for i, ids in enumerate(rows)]
    prompts = [Prompt(i, ids[:32]) for i, ids in enumerate(rows)]
    start = time.perf_counter()
    await taken(teacher.score(items[:1], Want(top_k=options.k, target=True)))
    figures: dict[str, Any] = {"start": time.perf_counter() - start}
    texts = Sampling(max_new_tokens=options.new)
    asked: dict[str, tuple[Callable[[], AsyncGenerator[Any, None]], int]] = {
        f"score, k = {options.k}": (
            lambda: teacher.score(items, Want(top_k=options.k, target=True)),
            sum(item.n for item in items),
        ),
        "score, the target alone": (
            lambda: teacher.score(items, Want(target=True)),
            sum(item.n for item in items),
        ),
        "read, no log-probability": (
            lambda: teacher.generate([Prompt(i.item_id, i.ids) for i in items], Sampling(max_new_tokens=1)),
            sum(item.n for item in items),
        ),
        "write": (lambda: teacher.generate(prompts, texts), 0),
    }
    if "generate_top_k" in teacher.info().capabilities:
        said = Sampling(max_new_tokens=options.new, logprobs=options.k)
        asked[f"write, k = {options.k} said"] = (lambda: teacher.generate(prompts, said), 0)
    scores: list[Any] = []
    for what, (question, count) in asked.items():
        best = float("inf")
        for _ in range(options.rounds):
            start = time.perf_counter()
            answers = await taken(question())
            best = min(best, time.perf_counter() - start)
        tokens = count or sum(len(answer.ids) for answer in answers)
        figures[what] = {"tokens": tokens, "rate": tokens / best}
        scores = scores or sorted(answers, key=lambda answer: answer[0])
    figures["memory"] = peak.most - before
    await teacher.close()
    tops = [signal.top_k.at(1.0) for _, signal in scores]
    np.savez(
        folder / "scores.npz",
        ids=np.concatenate([top[0] for top in tops]),
        logprobs=np.concatenate([top[1] for top in tops]),
        tail=np.concatenate([top[2] for top in tops]),
        target=np.concatenate([signal.target for _, signal in scores]),
    )
    (folder / "figures.json").write_text(json.dumps(figures))


def agreement(one: Path, other: Path) -> str:
    """How far two teachers' answers are from each other."""
    a, b = (np.load(folder / "scores.npz") for folder in (one, other))
    shared, worst = 0, 0.0
    for row in range(len(a["ids"])):
        _, left, right = np.intersect1d(a["ids"][row], b["ids"][row], return_indices=True)
        shared += len(left)
        worst = max(worst, float(np.abs(a["logprobs"][row][left] - b["logprobs"][row][right]).max()))
    return (
        f"{shared:,} of {a['ids'].size:,} ids are both teachers'; largest differences: log-probability {worst:.1e} (a "
        f"code step is {1 / 2048:.1e}), target {np.abs(a['target'] - b['target']).max():.1e}, "
        f"mass outside {np.abs(np.exp(a['tail']) - np.exp(b['tail'])).max():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=TEACHERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        asyncio.run(measured(options, options.only, options.folder))
        return
    table = Table("", *TEACHERS, title=f"{options.model}, {options.rows} × {options.tokens} tokens, {options.dtype}")
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made, name) for name in TEACHERS]
        for name, folder in zip(TEACHERS, folders, strict=True):
            folder.mkdir()
            more = ["--only", name, "--folder", str(folder)]
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *more], check=True, stdout=sys.stderr)
        found = [json.loads((folder / "figures.json").read_text()) for folder in folders]
        for what in dict.fromkeys(what for figures in found for what in figures):
            cells = [figures.get(what) for figures in found]
            if what == "start":
                table.add_row("start and first row, s", *(f"{cell:.1f}" for cell in cells))
            elif what == "memory":
                table.add_row("memory, MiB", *(f"{cell / 2**20:,.0f}" for cell in cells))
            else:
                table.add_row(f"{what}, tokens/s", *(f"{cell['rate']:,.0f}" if cell else "" for cell in cells))
        Console(width=120).print(table, agreement(*folders), sep="\n")


if __name__ == "__main__":
    main()
