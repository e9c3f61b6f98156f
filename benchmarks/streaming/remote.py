"""Part remote: the teacher plugin `limbeck` against the same teacher in process."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from limbeck.data import TokenSequence
from limbeck.interfaces import ScoreItem, Teacher
from limbeck.signals import Signal
from streaming.processes import processor_seconds
from streaming.tables import new_table, times
from streaming.teaching import WANT, batches, model_folder, served, shape

BUDGET = 0.95  # of the speed in process, at least
Seconds = dict[str, list[float]]


def table(options: argparse.Namespace, folder: Path) -> Table:
    import torch

    from limbeck.teachers import TransformersConfig
    from limbeck.teachers.transformers import TransformersTeacher

    torch.set_num_threads(options.threads)
    model = model_folder(options, folder)
    with served(options, model, folder, options.threads) as remote:
        local = TransformersTeacher(TransformersConfig(model=str(model.resolve()), device=options.device))
        asked = batches(options, local.info().vocab_size)
        teachers: dict[str, Teacher] = {"in process": local, "over the wire": remote}
        seconds, used, same = asyncio.run(_measure(teachers, asked, options.rounds))
    tokens = sum(sequence.n for batch in asked for sequence in batch)
    notes = (
        f"Medians of {options.rounds} rounds of {options.steps} batches, one at a time, in turn. "
        f"{'The answers are the same, bit for bit' if same else 'THE ANSWERS DIFFER'}. "
        f"Speed: the time in process over this one (budget: {BUDGET})."
    )
    columns = ("tokens/s", "s a round", "ms a batch", "CPU s a round", "speed")
    found = new_table(f"remote: {shape(options, options.threads)}", columns, notes)
    rounds = {
        name: statistics.median(sum(part) for part in _parts(all_, options.steps)) for name, all_ in seconds.items()
    }
    for name, all_ in seconds.items():
        found.add_row(
            name,
            f"{tokens / rounds[name]:,.0f}",
            f"{rounds[name]:.3f}",
            f"{1e3 * statistics.median(all_):.1f}",
            f"{used[name] / options.rounds:.3f}",
            times(rounds["in process"] / rounds[name]),
        )
    return found


async def _measure(
    teachers: Mapping[str, Teacher], asked: Sequence[Sequence[TokenSequence]], rounds: int
) -> tuple[Seconds, dict[str, float], bool]:
    """Seconds of every batch, processor seconds of all of them, and whether the teachers say the same."""
    seconds: Seconds = {name: [] for name in teachers}
    used = dict.fromkeys(teachers, 0.0)
    first = [await _ask(teacher, asked[0]) for teacher in teachers.values()]  # loads the weights
    same = all(_equal(one[number], other[number]) for one, other in [first] for number in one)
    for number in range(rounds):
        for place, batch in enumerate(asked):
            for name in list(teachers)[:: -1 if (number + place) % 2 else 1]:
                start, before = time.perf_counter(), processor_seconds()
                await _ask(teachers[name], batch)
                seconds[name].append(time.perf_counter() - start)
                used[name] += processor_seconds() - before
    for teacher in teachers.values():
        await teacher.close()
    return seconds, used, same


async def _ask(teacher: Teacher, batch: Sequence[TokenSequence]) -> dict[int, Signal]:
    items = [ScoreItem(one.index, one.ids, one.first_row, one.n) for one in batch]
    return {item_id: signal async for item_id, signal in teacher.score(items, WANT)}


def _equal(one: Signal, other: Signal) -> bool:
    assert one.top_k is not None
    assert other.top_k is not None
    return all(np.array_equal(getattr(one.top_k, name), getattr(other.top_k, name)) for name in ("ids", "u", "tails"))


def _parts(all_: Sequence[float], size: int) -> list[Sequence[float]]:
    return [all_[start : start + size] for start in range(0, len(all_), size)]
