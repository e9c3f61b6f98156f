"""The examples of examples/remote, each in a process of its own, against `limbeck serve --signals`."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import TokenSequence, write_sequences
from limbeck.interfaces import ScoreItem, Want
from limbeck.signals import SignalHeader, SignalWriter
from limbeck.teachers import TransformersConfig
from limbeck.teachers.transformers import TransformersTeacher
from limbeck.testing.teachers import ask, scores

from .served import ROOT, Process

EXAMPLES = ROOT / "examples" / "remote"
ROWS, TOKENS = 24, 20


@pytest.fixture(scope="module")
def server(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory):
    """Serves `rows`: made-up sequences and what the tiny teacher says of them."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    trained = np.arange(TOKENS) >= 4
    sequences = [
        TokenSequence(
            index=index,
            ids=np.concatenate([[2], rng.integers(5, 261, TOKENS - 1)]).astype(np.int32),
            trained=trained,
            offsets=np.zeros((TOKENS, 2), np.int32),
            source="rows.jsonl",
            line=index + 1,
        )
        for index in range(ROWS)
    ]
    teacher = TransformersTeacher(TransformersConfig(model=str(tiny_teacher)))
    items = [ScoreItem(s.index, s.ids, s.first_row, s.n) for s in sequences]
    found = ask(scores(teacher, items, Want(top_k=16)))
    info = teacher.info()
    header = SignalHeader(
        vocab_size=info.vocab_size,
        k=16,
        temperatures=(1.0,),
        target=False,
        tokenizer_digest=info.tokenizer_digest,
        template_digest=info.template_digest,
        weights_digest=info.weights_digest,
        teacher=info.name,
        tail_exact=info.tail_exact,
    )
    write_sequences(folder / "sequences" / "train.arrow", sequences)
    with SignalWriter(folder / "signals" / "train", header) as writer:
        for sequence in sequences:
            writer.add(sequence, found[sequence.index])
    with Process(f"--signals=rows={folder}", log=folder / "log") as process:
        yield process


def run(example: str, server: Process, student: Path, output: Path, *options: str) -> str:
    command = [sys.executable, EXAMPLES / example, server.address, "rows", student, output, "--batch=6", *options]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def differs(one: Path, other: Path) -> bool:
    """Whether two saved students of one shape have different weights."""
    from transformers import AutoModelForCausalLM

    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, other))
    assert first.keys() == second.keys()
    return any(not first[name].equal(second[name]) for name in first)


def test_a_bare_loop_learns_from_streamed_signals(server, tiny_student, tmp_path):
    printed = run("loop.py", server, tiny_student, tmp_path, "--epochs=6", "--learning-rate=3e-3")
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]
    assert re.findall(r"over (\d+) tokens", printed) == [str(ROWS * (TOKENS - 4))] * 6
    assert losses[-1] < 0.9 * losses[0]
    assert differs(tmp_path, tiny_student)


def test_transformers_own_trainer_learns_from_streamed_signals(server, tiny_student, tmp_path):
    printed = run("trainer.py", server, tiny_student, tmp_path, "--epochs=6", "--learning-rate=3e-3")
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.]+)", printed)]
    assert len(losses) == 6 * ROWS // 6
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert differs(tmp_path, tiny_student)


def test_the_bare_loop_is_short_and_uses_the_client_and_the_losses_alone():
    text = (EXAMPLES / "loop.py").read_text("utf-8")
    assert len(text.splitlines()) < 80
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name and name.startswith("limbeck")}
    assert ours == {"limbeck.client", "limbeck.functional", "limbeck.interfaces"}
