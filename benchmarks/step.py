"""A training step on stored signals against a plain cross-entropy step of the same student.

    python benchmarks/step.py --model FOLDER     # a causal LM; every second of its layers is the student
    python benchmarks/step.py                    # a small random model with 32,768 words

Both steps read the same rows with every token but the first trained, and use the same fused AdamW. The plain one is
``model(input_ids, labels=…)`` of transformers, which makes the logits; Limbeck's reads a signal store, collates, and
runs forward KL and cross-entropy in the chunked head. Times are interleaved in one process; `CPU s` is the least
processor time of a step, which other programs disturb least. Peak memory over the start is measured in a process of
its own for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.data import TokenSequence
from limbeck.functional import Term, Values, collate, install_head
from limbeck.interfaces import LossConfig, LossContext, TokenLossConfig
from limbeck.losses import PLUGINS
from limbeck.signals import Signal, SignalHeader, SignalStore, SignalWriter, TopK
from limbeck.training.student import take_layers

Step = Callable[[], float]


def teacher_of(folder: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = AutoConfig.for_model(
        "llama", vocab_size=32768, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def student_of(teacher: Any) -> Any:
    return take_layers(teacher, range(0, teacher.config.num_hidden_layers, 2)).train()


def rows_of(args: argparse.Namespace, vocab: int) -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    trained = np.ones(args.time, dtype=bool)
    trained[0] = False
    offsets = np.zeros((args.time, 2), dtype=np.int32)
    return [
        TokenSequence(
            i, generator.integers(3, vocab, args.time).astype(np.int32), trained, offsets, "rows.jsonl", i + 1
        )
        for i in range(args.batch)
    ]


@torch.no_grad()
def write_signals(teacher: Any, rows: list[TokenSequence], k: int, folder: Path) -> None:
    vocab = int(teacher.config.vocab_size)
    header = SignalHeader(
        vocab_size=vocab, k=k, temperatures=(1.0,), target=False, tokenizer_digest="", template_digest=None,
        weights_digest="", teacher="benchmark",
    )  # fmt: skip
    with SignalWriter(folder, header) as writer:
        for row in rows:
            logits = teacher(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0, : row.n].float()
            logprobs = torch.log_softmax(logits, -1)
            top = logprobs.topk(k)
            tails = logprobs.scatter(1, top.indices, -torch.inf).logsumexp(1, keepdim=True)
            signal = TopK.from_logprobs(top.indices.numpy().astype(np.int32), top.values.numpy(), tails.numpy(), (1.0,))
            writer.add(row, Signal(row.first_row, row.n, signal))


def limbeck_step(model: Any, rows: list[TokenSequence], store: SignalStore, k: int) -> Step:
    known = {plugin.name: plugin for plugin in PLUGINS}
    context = LossContext(int(model.config.hidden_size), None, int(model.config.vocab_size))
    terms = [
        Term.of(known["forward_kl"], TokenLossConfig(top_k=k), context),
        Term.of(known["cross_entropy"], LossConfig(), context),
    ]
    values = {"forward_kl": Values(weight=0.9), "cross_entropy": Values(weight=0.1)}
    install_head(model, terms)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        inputs, batch = collate(rows, [store.get(row) for row in rows], (1.0,), pad_id=0, top_k=k)
        loss = model(**inputs, batch=batch, values=values).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def plain_step(model: Any, rows: list[TokenSequence]) -> Step:
    ids = torch.from_numpy(np.stack([row.ids for row in rows]).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def make_steps(args: argparse.Namespace, signals: Path, names: list[str]) -> dict[str, Step]:
    teacher = teacher_of(args.model)
    rows = rows_of(args, int(teacher.config.vocab_size))
    if not (signals / "header.json").exists():
        write_signals(teacher, rows, args.top_k, signals)
    steps: dict[str, Step] = {}
    for name in names:
        student = student_of(teacher)
        if name == "limbeck":
            steps[name] = limbeck_step(student, rows, SignalStore(signals), args.top_k)
        else:
            steps[name] = plain_step(student, rows)
    return steps


def memory(field: str) -> int:
    """A figure of /proc/self/status in bytes; the peak since the start where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{field}:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(args: argparse.Namespace, signals: Path) -> None:
    step = make_steps(args, signals, [args.peak])[args.peak]
    before = memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(2):  # the optimizer's state comes with the first
        step()
    print(json.dumps(memory("VmHWM") - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--time", type=int, default=96)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peak", choices=["limbeck", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--signals", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak is not None:
        peak(args, args.signals)
        return
    names = ["limbeck", "plain"]
    with tempfile.TemporaryDirectory() as folder:
        signals = Path(folder)
        steps = make_steps(args, signals, names)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        processor: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            steps[name]()  # warm
        for number in range(args.steps):
            for name in names if number % 2 else reversed(names):
                began, used = time.perf_counter(), time.process_time()
                steps[name]()
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
        del steps
        options = ["--batch", args.batch, "--time", args.time, "--top-k", args.top_k, "--signals", signals]
        options += ["--model", args.model] if args.model else []
        peaks = {}
        for name in names:
            command = [sys.executable, __file__, "--peak", name, *map(str, options)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name] = json.loads(done.stdout.splitlines()[-1])
    shape = f"batch {args.batch} × {args.time}, k = {args.top_k}, {torch.get_num_threads()} threads, fp32"
    print(f"{args.model or 'a random model, 32,768 words'}: every second layer; {shape}; {args.steps} steps each\n")
    print(f"{'step':<38}{'median s':>10}{'best s':>10}{'CPU s':>10}{'peak over start GB':>22}")
    labels = {"limbeck": "stored signals (KL + cross-entropy)", "plain": "plain cross-entropy (labels=)"}
    for name in names:
        median, best, used = statistics.median(seconds[name]), min(seconds[name]), min(processor[name])
        print(f"{labels[name]:<38}{median:>10.3f}{best:>10.3f}{used:>10.3f}{peaks[name] / 1e9:>22.2f}")
    ratios = [
        measure(values["limbeck"]) / measure(values["plain"])
        for measure, values in ((statistics.median, seconds), (min, seconds), (min, processor))
    ]
    print(f"{'ratio':<38}" + "".join(f"{ratio:>10.2f}" for ratio in ratios), end="")
    print(f"{peaks['limbeck'] / peaks['plain']:>22.2f}")


if __name__ == "__main__":
    main()
