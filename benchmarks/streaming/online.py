"""Part online: student steps while a remote teacher is asked ahead, as the trainer does it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from limbeck.data import TokenSequence
from limbeck.signals import Signal
from streaming.processes import processor_seconds
from streaming.tables import new_table, times
from streaming.teaching import WANT, batches, model_folder, served, shape

AHEAD = 2  # batches, as `signals.prefetch` of a recipe
Batches = Sequence[Sequence[TokenSequence]]
Step = Callable[[Sequence[TokenSequence], Sequence[Signal | None]], None]


def table(options: argparse.Namespace, folder: Path) -> Table:
    import torch

    from limbeck.training.sources import OnlineSource

    threads = max(1, options.threads // 2)
    torch.set_num_threads(threads)
    model = model_folder(options, folder)
    with served(options, model, folder, threads) as teacher:
        asked = batches(options, teacher.info().vocab_size)
        step = _step(model, options.device)
        ahead, in_turn = OnlineSource(teacher, WANT, AHEAD), OnlineSource(teacher, WANT, 0)
        kept = [in_turn.signals_for(batch) for batch in asked]
        step(asked[0], kept[0])  # the optimizer's state comes with the first
        ways: dict[str, Callable[[], None]] = {
            "teacher alone": lambda: _loop(asked, ahead, None),
            "student alone": lambda: _steps(asked, kept, step),
            "both, not asked ahead": lambda: _loop(asked, in_turn, step),
            "both, asked ahead": lambda: _loop(asked, ahead, step),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        used: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                start, before = time.perf_counter(), processor_seconds()
                ways[name]()
                seconds[name].append(time.perf_counter() - start)
                used[name].append(processor_seconds() - before)
        ahead.close()
        in_turn.close()
    return _table(seconds, used, shape(options, threads), options)


def _step(model: Path, device: str) -> Step:
    """A step of forward KL for the student: every second layer of the model."""
    import torch
    from transformers import AutoModelForCausalLM

    from limbeck.functional import Term, Values, collate, install_head
    from limbeck.interfaces import LossContext, TokenLossConfig
    from limbeck.losses import PLUGINS
    from limbeck.training.student import take_layers

    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    layers = range(0, teacher.config.get_text_config().num_hidden_layers, 2)
    student: Any = take_layers(teacher, layers).train().to(device)
    config = student.config.get_text_config()
    plugin = next(plugin for plugin in PLUGINS if plugin.name == "forward_kl")
    context = LossContext(int(config.hidden_size), None, int(config.vocab_size))
    install_head(student, [Term.of(plugin, TokenLossConfig(top_k=WANT.top_k), context)])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)

    def step(batch: Sequence[TokenSequence], signals: Sequence[Signal | None]) -> None:
        inputs, made = collate(batch, signals, (1.0,), pad_id=0, top_k=WANT.top_k)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        loss = student(**inputs, batch=made, values={"forward_kl": Values(weight=1.0)}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for an accelerator

    return step


def _loop(asked: Batches, source: Any, step: Step | None) -> None:
    for place, batch in enumerate(asked):
        for coming in asked[place : place + 1 + source.lookahead]:
            source.ahead(coming)
        signals = source.signals_for(batch)
        if step is not None:
            step(batch, signals)


def _steps(asked: Batches, kept: Sequence[Sequence[Signal | None]], step: Step) -> None:
    for batch, signals in zip(asked, kept, strict=True):
        step(batch, signals)


def _table(
    all_seconds: dict[str, list[float]], used: dict[str, list[float]], what: str, options: argparse.Namespace
) -> Table:
    seconds = {name: statistics.median(all_) for name, all_ in all_seconds.items()}
    alone = seconds["teacher alone"], seconds["student alone"]
    notes = (
        f"Medians of {options.rounds} rounds of {options.steps} steps in turn. The teacher is served by another "
        f"process, and asked {AHEAD} batches ahead. Hidden: how much of the quicker one's time alone costs no time; "
        "nothing can hide the teacher's first batch."
    )
    found = new_table(f"online: {what}", ("s", "ms a step", "CPU s of all", "× slower alone", "hidden"), notes)
    for name, value in seconds.items():
        hidden = (sum(alone) - value) / min(alone)
        found.add_row(
            name,
            f"{value:.2f}",
            f"{1e3 * value / options.steps:.0f}",
            f"{statistics.median(used[name]):.2f}",
            times(value / max(alone)),
            f"{hidden:.0%}" if name.startswith("both") else "",
        )
    return found
