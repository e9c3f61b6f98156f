"""Run by test_processes.py as each of two gloo processes: trains on its rows and saves what the gradients became."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.functional import Answer, SignalBatch, Term, Values, install_head
from limbeck.interfaces import LossContext
from limbeck.losses import PLUGINS
from limbeck.testing.tiny import tiny_model

ROWS, TIME, VOCAB = 4, 7, 261
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"family": "llama", "tied": True},
    "untied": {"family": "llama", "tied": False},
    "soft-capped": {"family": "gemma2", "tied": True},
    "frozen": {"family": "llama", "tied": False},
}


def terms() -> tuple[list[Term], dict[str, Values]]:
    """A token loss over a support, one over the label, and a feature loss with a parameter of its own."""
    by_name = {plugin.name: plugin for plugin in PLUGINS}
    context = LossContext(32, 20, VOCAB)
    asked = {
        "forward_kl": {"temperature": 2.0, "top_k": 6},
        "cross_entropy": {"weight": 0.3},
        "hidden_mse": {"layers": [[1, 1]]},
    }
    torch.manual_seed(7)
    made = [
        Term.of(by_name[name], by_name[name].config.model_validate(options), context) for name, options in asked.items()
    ]
    values = {"forward_kl": Values(temperature=2.0), "cross_entropy": Values(weight=0.3), "hidden_mse": Values()}
    return made, values


def batch_of(rows: range) -> tuple[Tensor, SignalBatch]:
    """The input ids and signals of some of four rows. The last row keeps nothing."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCAB, (ROWS, TIME), generator=draw)
    logits = 2 * torch.randn(ROWS, TIME, VOCAB, generator=draw)
    states = torch.randn(ROWS, TIME, 20, generator=draw)
    labels = ids.clone()
    labels[:, :3] = -100
    labels[3] = -100
    labels, logits, states = (
        labels[rows.start : rows.stop],
        logits[rows.start : rows.stop],
        states[rows.start : rows.stop],
    )
    kept = labels[:, 1:] != -100
    answers = {"top_k": Answer.of_logits(logits[:, :-1][kept], 6, (2.0,))}
    return ids[rows.start : rows.stop], SignalBatch.of_labels(labels, answers=answers, hidden={1: states[:, :-1][kept]})


def student(name: str) -> nn.Module:
    """The model of a case with the head installed."""
    options = dict(MODELS[name])
    model: nn.Module = tiny_model(options.pop("family"), **options).train()
    if name == "frozen":
        model.get_output_embeddings().requires_grad_(False)  # type: ignore[operator]
    install_head(model, terms()[0])
    return model


def gradients(model: nn.Module, parts: list[range], entry: Any, processes: int) -> dict[str, Tensor]:
    """Gradients after the parts of this process, accumulated; counts are those of all processes and parts."""
    counts = {"tokens": 12, "rows": ROWS, "pairs": 0}
    for number, rows in enumerate(parts):
        ids, batch = batch_of(rows)
        last = number == len(parts) - 1
        with entry.no_sync() if processes > 1 and not last else torch.enable_grad():
            out = entry(input_ids=ids, batch=batch, values=terms()[1], denominators=counts)
            (out.loss * processes).backward()  # DDP takes the mean over processes
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def sharded_head() -> str:
    """What is said of a head that FSDP2 shards on its own: where the loss reads it, it is not whole."""
    from torch.distributed.fsdp import fully_shard

    model = student("untied")
    fully_shard(model.lm_head)
    fully_shard(model)
    ids, batch = batch_of(range(2))
    try:
        model(input_ids=ids, batch=batch, values=terms()[1])
    except LimbeckError as error:
        return str(error)
    return "accepted"


def sharded_gradients(rank: int) -> dict[str, Tensor]:
    """Gradients of a model in FSDP2, whose head is in the root's group, gathered."""
    from torch.distributed.fsdp import fully_shard

    model = student("tied")
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(model)
    ids, batch = batch_of(range(2 * rank, 2 * rank + 2))
    counts = {"tokens": 12, "rows": ROWS, "pairs": 0}
    out = model(input_ids=ids, batch=batch, values=terms()[1], denominators=counts)
    (out.loss * 2).backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def main(rank: int, folder: Path) -> None:
    """Both processes: DDP for each case, then FSDP2."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name in MODELS:
        model = student(name)
        wrapped = nn.parallel.DistributedDataParallel(model)
        # process 1 has the row without a kept token as its second micro-batch
        parts = [range(2 * rank, 2 * rank + 1), range(2 * rank + 1, 2 * rank + 2)]
        results[name] = gradients(model, parts, wrapped, 2)
    results["sharded tied"] = sharded_gradients(rank)
    results["sharded head"] = sharded_head()
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
