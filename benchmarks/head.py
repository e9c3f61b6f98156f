"""Loss and head: chunked with the closed-form gradient against materialised logits, in time and peak memory.

    python benchmarks/head.py                       # 8 x 512 tokens on Gemma's vocabulary, loss and head alone
    python benchmarks/head.py --tokens 1024         # fewer tokens
    python benchmarks/head.py --step                # a whole training step of a 9-layer Gemma 3 (270M's sizes)
    python benchmarks/head.py --device cuda         # on a GPU

Each variant runs in a process of its own, so that one's peak is not the other's. Memory is the peak over what was held
before the first loss (inputs, weights), which every variant holds alike. `materialised` is the same loss by autograd:
log_softmax of whole logits, the tail by logsumexp over the complement. `lean` takes the tail as 1 minus the sum, which
costs less and fails where the rest is small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ("chunked", "materialised", "materialised, lean", "materialised cross-entropy")
LAYERS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8 * 512, help="trained tokens in the batch")
    parser.add_argument("--vocab", type=int, default=262_144)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many is shown")
    parser.add_argument("--chunk-mib", type=int, default=256, help="what the chunked variant's chunk may take")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--step", action="store_true", help="a whole training step: model, loss, backward, AdamW")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(_measure(options)))
        return
    what = f"training step, {LAYERS} layers" if options.step else "loss and head"
    print(
        f"{what}; {options.tokens} tokens x {options.vocab} words, d = {options.hidden}, k = {options.top_k}, ", end=""
    )
    print(f"{options.dtype}, {options.device}, {options.threads} threads; best of {options.repeat}")
    results = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        results[variant] = json.loads(done.stdout) if done.returncode == 0 else None
        print(f"{variant}: {results[variant]}", file=sys.stderr, flush=True)
    base = results["materialised"]
    print(f"{'variant':<28}{'seconds':>9}{'CPU s':>8}{'peak MB':>9}{'time':>7}{'CPU':>6}{'memory':>8}{'loss':>9}")
    for variant, found in results.items():
        if found is None:
            print(f"{variant:<28}{'did not finish (out of memory?)':>33}")
            continue
        time_, busy, memory = (f"{found[key] / base[key]:.2f}" if base else "-" for key in ("seconds", "busy", "bytes"))
        numbers = f"{found['seconds']:>9.2f}{found['busy']:>8.2f}{found['bytes'] / 1e6:>9.0f}"
        numbers += f"{time_:>7}{busy:>6}{memory:>8}{found['loss']:>9.4f}"
        print(f"{variant:<28}{numbers}")


def _measure(options: argparse.Namespace) -> dict[str, float]:
    import torch

    with contextlib.suppress(OSError):  # where memory runs out, this process ends and not its neighbours
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    run = _step(options) if options.step else _loss(options)
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        start = _resident()
    best, busy, loss = float("inf"), float("inf"), 0.0
    for _ in range(options.repeat):
        began, began_busy = time.perf_counter(), time.process_time()
        loss = run()
        if cuda:
            torch.cuda.synchronize()
        best, busy = min(best, time.perf_counter() - began), min(busy, time.process_time() - began_busy)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": best, "busy": busy, "bytes": peak - start, "loss": loss}


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _inputs(options: argparse.Namespace) -> tuple[Any, Any]:
    """Labels, and a teacher's answer on k ids with its tail."""
    import torch

    from limbeck.functional import Answer

    n, k, where = options.tokens, options.top_k, options.device
    labels = torch.randint(0, options.vocab, (n,), device=where)
    ids = torch.randint(0, options.vocab // k, (n, k), device=where) + torch.arange(k, device=where) * (
        options.vocab // k
    )
    logprobs = torch.log_softmax(3 * torch.randn(n, k + 1, device=where), 1)
    return labels, Answer(ids, {1.0: (logprobs[:, :-1].contiguous(), logprobs[:, -1].contiguous())})


def _terms() -> tuple[Any, Any]:
    from limbeck.functional import make_terms
    from limbeck.interfaces import LossContext

    return make_terms([{"plugin": "forward_kl"}], LossContext(1, None, 1))


def _materialised(logits: Any, labels: Any, answer: Any) -> Any:
    """The same forward KL from whole logits."""
    import torch

    log_p, log_t = answer.at[1.0]
    every = torch.log_softmax(logits, 1)
    log_q = every.gather(1, answer.ids)
    log_u = every.scatter(1, answer.ids, -torch.inf).logsumexp(1)
    return ((log_p.exp() * (log_p - log_q)).sum(1) + log_t.exp() * (log_t - log_u)).mean()


def _lean(logits: Any, labels: Any, answer: Any) -> Any:
    """The same with a tail of 1 − Σ."""
    import torch

    log_p, log_t = answer.at[1.0]
    log_q = logits.gather(1, answer.ids) - torch.logsumexp(logits, 1, keepdim=True)
    log_u = torch.log1p(-log_q.exp().sum(1))
    return ((log_p.exp() * (log_p - log_q)).sum(1) + log_t.exp() * (log_t - log_u)).mean()


def _cross_entropy(logits: Any, labels: Any, answer: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(logits, labels)


FORMULAS = {
    "materialised": _materialised,
    "materialised, lean": _lean,
    "materialised cross-entropy": _cross_entropy,
}


def _loss(options: argparse.Namespace) -> Callable[[], float]:
    import torch

    from limbeck.functional import Head, SignalBatch, head_loss

    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(options.tokens, options.hidden, device=options.device, dtype=dtype, requires_grad=True)
    weight = 0.05 * torch.randn(options.vocab, options.hidden, device=options.device, dtype=dtype)
    weight.requires_grad_()
    labels, answer = _inputs(options)
    terms, values = _terms()

    def run() -> float:
        hidden.grad = weight.grad = None
        if options.variant == "chunked":
            batch = SignalBatch(labels, {"top_k": answer})
            loss = head_loss(hidden, Head(weight), batch, terms, values, chunk_bytes=options.chunk_mib * 2**20).loss
        else:
            loss = FORMULAS[options.variant]((hidden @ weight.T).float(), labels, answer)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    return run


def _step(options: argparse.Namespace) -> Callable[[], float]:
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    from limbeck.functional import SignalBatch, install_head

    config = Gemma3TextConfig(
        vocab_size=options.vocab, hidden_size=options.hidden, intermediate_size=2048, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(options.device, getattr(torch, options.dtype)).train()
    rows = 8
    input_ids = torch.randint(0, options.vocab, (rows, options.tokens // rows), device=options.device)
    labels, answer = _inputs(options)
    terms, values = _terms()
    if options.variant == "chunked":
        install_head(model, terms, chunk_bytes=options.chunk_mib * 2**20)
    batch_n = torch.arange(rows, device=options.device).repeat_interleave(options.tokens // rows)
    time_n = torch.arange(options.tokens // rows, device=options.device).repeat(rows)
    batch = SignalBatch(labels, {"top_k": answer}, batch_n=batch_n, time_n=time_n)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():  # the optimizer's state is held before the first step, by every variant
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def run() -> float:
        if options.variant == "chunked":
            loss = model(input_ids=input_ids, batch=batch, values=values).loss
        else:
            logits = model(input_ids=input_ids).logits.flatten(0, 1).float()
            loss = FORMULAS[options.variant](logits, labels, answer)
            del logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


if __name__ == "__main__":
    main()
