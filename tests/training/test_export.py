"""The exported student is loaded by transformers alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.recipe import StudentSpec
from limbeck.testing.tiny import tiny_model, tiny_model_folder
from limbeck.training import build_student, export_student, train

LOADER = """
import json, sys
sys.modules["limbeck"] = None  # what is not installed raises ImportError
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("hello", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=5)
    answers[folder] = [model(**inputs).logits.sum().item(), out.shape[1] - inputs["input_ids"].shape[1],
                       model.config.use_cache, model.generation_config.eos_token_id]
print(json.dumps(answers))
"""


def test_students_load_in_a_fresh_interpreter_without_limbeck(world: Any, kit: Any, tmp_path: Path, data: Path) -> None:
    folders: dict[str, Any] = {}
    for family in ("gemma3", "gpt2"):
        teacher = tiny_model_folder(tmp_path / f"{family}-teacher", data / "tok_a", family, layers=3)
        spec = StudentSpec.model_validate({"from": "teacher", "layers": [0, 2]})
        job = world.job(
            tmp_path / family,
            student=lambda spec=spec, teacher=teacher: build_student(spec, teacher),
            training={"max_steps": 1},
        )
        result = train(job, kit.Sink())
        folder = export_student(result.model, result.tokenizer_folder, tmp_path / f"{family}-student", "# A card\n")
        folders[str(folder)] = result.model
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (teacher / name).read_bytes()
        assert (folder / "README.md").read_text() == "# A card\n"
        assert not list(folder.glob("*.bin"))
    loader = tmp_path / "loader.py"
    loader.write_text(LOADER)
    done = subprocess.run(
        [sys.executable, str(loader), *folders], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from transformers import AutoTokenizer

    for folder, answer in json.loads(done.stdout).items():
        inputs = AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt")
        with torch.no_grad():
            expected = float(folders[folder](**inputs).logits.sum())
        assert answer[0] == pytest.approx(expected, rel=1e-4, abs=1e-3)
        assert 1 <= answer[1] <= 5
        assert answer[2] is True
        assert answer[3] == 1


def test_an_export_replaces_a_former_one_as_a_whole(tmp_path: Path, data: Path) -> None:
    model = tiny_model("llama", 64)
    folder = export_student(model, data / "tok_a", tmp_path / "student", "one")
    (folder / "stale.txt").write_text("of the former")
    (tmp_path / ".student.partial").mkdir()  # left by a crash
    export_student(model, data / "tok_a", folder, "two")
    assert (folder / "README.md").read_text() == "two"
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_settings_of_sampling_that_transformers_would_refuse_are_put_right(tmp_path: Path, data: Path) -> None:
    model = tiny_model("llama", 64)
    model.generation_config.temperature = 0.7  # without do_sample: save_pretrained raises
    model.generation_config.top_k = 64
    folder = export_student(model, data / "tok_a", tmp_path / "student", "")
    assert "temperature" not in json.loads((folder / "generation_config.json").read_text())


def test_a_sampling_teachers_settings_and_end_tokens_go_along(tmp_path: Path, data: Path) -> None:
    teacher = tiny_model_folder(tmp_path / "teacher", data / "tok_a", layers=2)
    settings = {"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": [1, 5], "bos_token_id": 2}
    (teacher / "generation_config.json").write_text(json.dumps(settings))
    student = build_student(StudentSpec.model_validate({"from": "teacher", "layers": [1]}), teacher)
    folder = export_student(student.model, student.tokenizer_folder, tmp_path / "student", "")
    written = json.loads((folder / "generation_config.json").read_text())
    assert {name: written[name] for name in settings} == settings


def test_exports_of_the_same_weights_are_the_same_bytes(tmp_path: Path, data: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        folder = export_student(tiny_model("gemma3", 64, seed=5), data / "tok_a", tmp_path / name, "")
        digests.add(hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1
