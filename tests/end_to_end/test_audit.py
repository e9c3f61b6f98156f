"""`limbeck audit`: its numbers against independent ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run whose losses are one forward KL at temperature 2."""
    copied = Path(shutil.copytree(finished, tmp_path_factory.mktemp("audit") / "project"))
    recipe = (copied / "recipe.yaml").read_text()
    start, end = recipe.index("losses:"), recipe.index("training:")
    loss = "losses: [{plugin: forward_kl, top_k: 8, temperature: 2.0}, {plugin: cross_entropy}]\n"
    (copied / "recipe.yaml").write_text(recipe[:start] + loss + recipe[end:])
    return copied


def _lines(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {line["signal"]: line for line in found["lines"]}


def _truth(project: Path, rows: int) -> tuple[float, np.ndarray]:
    """T² times the forward KL per token at T = 2, and its gradient in the student's last hidden states, by autograd."""
    from transformers import AutoModelForCausalLM

    from limbeck.data import read_sequences
    from limbeck.recipe.schema import StudentSpec
    from limbeck.training import build_student

    teacher = AutoModelForCausalLM.from_pretrained(project / "teacher").eval()
    spec = StudentSpec.model_validate({"from": "teacher", "layers": [0, 3]})
    student = build_student(spec, project / "teacher").model
    sequences = read_sequences(project / "run" / "sequences" / "train.arrow")[:rows]
    total, tokens, gradients = 0.0, sum(len(s.kept) for s in sequences), []
    for sequence in sequences:
        ids = torch.from_numpy(sequence.ids.astype(np.int64))[None]
        with torch.no_grad():
            p = torch.log_softmax(teacher(ids).logits[0, sequence.kept].double() / 2, -1)
            states = student.base_model(ids).last_hidden_state[0, sequence.kept].double()
        states.requires_grad_()
        z = states @ student.get_output_embeddings().weight.detach().double().T
        loss = 4 * (p.exp() * (p - torch.log_softmax(z / 2, -1))).sum() / tokens
        loss.backward()
        total += float(loss.detach())
        gradients.append(states.grad.numpy())
    return total, np.concatenate(gradients)


def test_the_exact_loss_is_that_of_the_whole_vocabulary_and_k_alone_and_codec_are_told_apart(
    project: Path, inside: Inside
) -> None:
    code, out, err = inside("audit", project / "recipe.yaml", "--rows", "5", "--json")
    assert code == 0, err
    found = json.loads(out)
    lines = _lines(found)
    truth, gradient = _truth(project, 5)
    assert found["rows"] == 5
    assert found["tokens"] == len(gradient)
    assert lines["exact"]["loss"] == pytest.approx(truth, rel=1e-5)
    errors = [lines[f"top_k {k}"]["gradient_error"] for k in (256, 64, 16, 8, 4)]
    assert errors == sorted(errors), "a smaller support has a larger error"
    assert errors[-1] > 0.1
    for k in (256, 64, 16, 8, 4):
        line = lines[f"top_k {k}"]
        for what in ("loss", "gradient"):
            # little; of ids with one code a smaller k may keep others than the exact numbers would
            assert 0 < line[f"{what}_by_codec"] < 0.02
            assert line[f"{what}_by_codec"] < line[f"{what}_error"]
        assert line["bytes"] == 4 * k + 2 * 4  # k ids and codes of 2 bytes, tails at 1 and 2; 16 bits hold an id
    coarse = lines["hidden states bf16"]
    assert coarse["gradient_error"] == coarse["gradient_by_codec"] > 0
    assert lines["hidden states f32"]["gradient_error"] == lines["exact"]["gradient_error"] == 0


def test_people_get_a_table(project: Path, inside: Inside) -> None:
    code, out, err = inside("audit", project / "recipe.yaml", "--rows", "2")
    assert code == 0, err
    assert out.startswith("2 rows, ")
    assert [line.split("  ")[0] for line in out.splitlines()[1:]][:2] == ["signal", "exact"]


def test_a_recipe_without_such_a_loss_has_nothing_to_audit(project: Path, tmp_path: Path, inside: Inside) -> None:
    recipe = (project / "recipe.yaml").read_text()
    start, end = recipe.index("losses:"), recipe.index("training:")
    other = project / "other.yaml"
    other.write_text(recipe[:start] + "losses: [{plugin: cross_entropy}]\n" + recipe[end:])
    code, _, err = inside("audit", other)
    assert code == 2
    assert "nothing to compare" in err


def test_options_of_a_server_go_together(project: Path, inside: Inside) -> None:
    assert inside("audit", project / "recipe.yaml", "--teacher", "x")[0] == 2
    assert inside("audit", project / "recipe.yaml", "--server", "127.0.0.1:1")[0] == 2
