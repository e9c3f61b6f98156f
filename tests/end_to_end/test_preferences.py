"""A run on preference pairs is judged by preferences: the teacher is but its reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data import read_sequences
from limbeck.report import Report
from limbeck.runs.prepare import HOLDOUT

RECIPE = """\
teacher: {{plugin: transformers, model: {teacher}}}
student: {{from: teacher}}
data: {{path: rows.jsonl, holdout: 6}}
losses:
  - {{plugin: contrastive, beta: 0.5}}
training: {{learning_rate: 3.0e-3, max_steps: 12, per_device_train_batch_size: 8}}
evaluation: {{twin: true, samples: 1, max_new_tokens: 4}}
output: run
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, limbeck: Callable[..., Any]) -> Path:
    """A finished run of the contrastive loss alone: polite answers are chosen, rude ones rejected."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        {"prompt": f"What is {n} and {n}?", "chosen": f" It is {2 * n}, sir.", "rejected": f" WHO CARES! {2 * n}"}
        for n in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(teacher=tiny_teacher))
    done = limbeck("run", folder / "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def _log_prob(model: Any, sequence: Any) -> float:
    ids = torch.from_numpy(sequence.ids.astype("int64"))
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)) if sequence.trained[at])


def test_the_figures_are_those_of_the_exported_models(run: Path, tiny_teacher: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = Report.model_validate_json((run / "report" / "report.json").read_text())
    assert report.evaluation is not None
    assert (report.evaluation.holdout.pairs, report.evaluation.holdout.rows) == (6, 12)  # a row is one text
    sequences = read_sequences(run / HOLDOUT)
    reference = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    for name in ("student", "twin"):
        model = AutoModelForCausalLM.from_pretrained(run / name)
        ratio = {(s.pair, s.chosen): _log_prob(model, s) - _log_prob(reference, s) for s in sequences}
        margins = [ratio[pair, True] - ratio[pair, False] for pair in range(6)]
        figures = report.evaluation.models[name]  # type: ignore[index]
        assert figures.preference_accuracy == sum(margin > 0 for margin in margins) / 6
        assert figures.preference_margin == pytest.approx(sum(margins) / 6, rel=1e-3)


def test_the_verdict_the_page_and_the_terminal_speak_of_preferences(run: Path) -> None:
    report = Report.model_validate_json((run / "report" / "report.json").read_text())
    assert report.evaluation is not None
    student, untrained = report.evaluation.models["student"], report.evaluation.models["untrained"]
    assert report.evaluation.aim == "preferences"
    assert untrained.preference_accuracy == 0.5  # it is a copy of its reference
    assert (student.preference_accuracy, report.verdict.outcome) == (1.0, "better")
    assert student.preference_margin is not None
    assert student.preference_margin > 1
    # By closeness to the teacher, of which the untrained student is a copy, the same run would be a failure.
    assert report.verdict.against["untrained"].forward_kl_change is None
    assert "favours the chosen text in 100.0\u00a0% against" in report.verdict.text
    page = (run / "report" / "index.html").read_text()
    assert "Favours the chosen text" in page
    assert "6 preference pairs" in page
    assert "favours chosen" in (run.parent / "stdout.txt").read_text()
    assert "Favours the chosen text" in (run / "student" / "README.md").read_text()
