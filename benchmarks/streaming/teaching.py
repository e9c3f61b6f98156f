"""A teacher, served and in process, and what it is asked: for the parts remote and online."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from limbeck.data import TokenSequence
from limbeck.interfaces import Want
from limbeck.teachers.config import LimbeckConfig
from limbeck.teachers.remote import LimbeckTeacher
from streaming.processes import limbeck_serve, teacher_file
from streaming.rows import TOKENIZER

WANT = Want(top_k=64)


def model_folder(options: argparse.Namespace, folder: Path) -> Path:
    """The model, or a small random one with 32,768 words."""
    if options.model is not None:
        return Path(options.model)
    from limbeck.testing.tiny import tiny_model_folder

    return tiny_model_folder(folder / "model", TOKENIZER, vocab_size=32_768, layers=8, hidden=256)


@contextmanager
def served(options: argparse.Namespace, model: Path, folder: Path, threads: int) -> Iterator[LimbeckTeacher]:
    """The teacher plugin `limbeck` with a server of its own, whose worker has so many threads."""
    file = teacher_file(folder, plugin="transformers", model=model.resolve(), device=options.device)
    with limbeck_serve("--teacher", f"teacher={file}", threads=threads) as (address, _):
        teacher = LimbeckTeacher(LimbeckConfig(address=address, teacher="teacher"))
        try:
            yield teacher
        finally:
            asyncio.run(teacher.close())


def batches(options: argparse.Namespace, vocab_size: int) -> list[list[TokenSequence]]:
    """`steps` batches of drawn sequences with every token but the first trained."""
    draw = np.random.default_rng(0)
    trained, offsets = np.arange(options.time) > 0, np.zeros((options.time, 2), np.int32)
    ids = draw.integers(3, vocab_size, (options.steps, options.batch, options.time)).astype(np.int32)
    return [
        [
            TokenSequence(step * options.batch + row, ids[step, row], trained, offsets, "drawn", row + 1)
            for row in range(options.batch)
        ]
        for step in range(options.steps)
    ]


def shape(options: argparse.Namespace, threads: int) -> str:
    """What was asked, in words."""
    model = options.model or "a small random model, 32,768 words"
    return f"{model}; batches of {options.batch} × {options.time}, k = {WANT.top_k}, {threads} threads each"
