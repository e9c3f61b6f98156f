"""The Python of docs/training.md runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data import read_sequences, write_sequences
from limbeck.signals import SignalHeader, SignalWriter
from limbeck.testing.tiny import tiny_model

RECIPE = """
teacher: {plugin: transformers, model: teacher-folder}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl}
losses:
  - {plugin: forward_kl, top_k: 8}
training: {max_steps: 2, per_device_train_batch_size: 2}
output: run
"""


def test_the_guides_python_trains_and_exports(
    kit: Any, tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Path(__file__).parents[2] / "docs" / "training.md"
    code = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    assert len(code) == 1
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_teacher, "teacher-folder")
    Path("recipe.yaml").write_text(RECIPE)
    sequences = kit.make_sequences(4)
    file = Path("run/sequences/train.arrow")
    file.parent.mkdir(parents=True)
    write_sequences(file, sequences)
    teacher = tiny_model("llama", kit.VOCAB, seed=1)
    header = SignalHeader(
        vocab_size=kit.VOCAB, k=8, temperatures=kit.TEMPERATURES, target=True, tokenizer_digest="t",
        template_digest=None, weights_digest="w", teacher="tiny",
    )  # fmt: skip
    with SignalWriter(Path("run/signals/train"), header) as writer:
        for sequence in read_sequences(file):
            writer.add(sequence, kit.make_signal(teacher, sequence))

    exec(compile(code[0], str(guide), "exec"), {})

    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained("my-student")
    assert student.config.num_hidden_layers == 2
    start = AutoModelForCausalLM.from_pretrained("teacher-folder")
    assert not torch.equal(student.model.norm.weight, start.model.norm.weight)
    assert "2 CheckpointSaved" in capsys.readouterr().out
