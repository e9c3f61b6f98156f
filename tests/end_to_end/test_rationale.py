"""Rationales through a whole run: weighed, as context, and dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.data import read_sequences
from limbeck.runs.stage import Record

Inside = Callable[..., tuple[int, str, str]]
RECIPE = """\
student: {{model: {student}}}
data: {{path: rows.jsonl, holdout: 4{rationale}}}
losses: [{{plugin: cross_entropy}}]
training: {{learning_rate: 1.0e-2, max_steps: 4, per_device_train_batch_size: 4}}
evaluation: {{samples: 1, max_new_tokens: 4}}
output: {name}
"""


@pytest.fixture
def run(tmp_path: Path, tiny_student: Path, inside: Inside) -> Callable[..., Path]:
    rows = [
        {"prompt": f"{number}? ", "completion": f"<think>{'hm ' * (number % 3)}</think> so {number}"}
        for number in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(name: str, rationale: str = "") -> Path:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(RECIPE.format(student=tiny_student, rationale=rationale, name=name))
        code, _, err = inside("run", recipe)
        assert code == 0, err
        return tmp_path / name

    return call


def student(run: Path) -> bytes:
    return (run / "student" / "model.safetensors").read_bytes()


def test_a_weight_changes_the_student_and_weight_one_changes_nothing(run: Callable[..., Path]) -> None:
    plain, one = run("plain"), run("one", ", rationale: {tag: think}")
    assert student(one) == student(plain)
    assert (one / "sequences" / "train.arrow").read_bytes() == (plain / "sequences" / "train.arrow").read_bytes()
    weighed = run("weighed", ", rationale: {tag: think, weight: 0.2}")
    assert student(weighed) != student(plain)
    found, before = Record(weighed, "prepare").figures, Record(plain, "prepare").figures
    assert found["trained_tokens"] == before["trained_tokens"]
    assert found["rows_with_rationale"] == 20
    assert 0 < found["rationale_tokens"] < found["trained_tokens"]
    assert "rows_with_rationale" not in before
    page = (weighed / "report" / "index.html").read_text("utf-8")
    assert "rows with rationale 20" in page
    tokens = [json.loads(path.read_text())["holdout"]["tokens"] for path in (
        weighed / "evaluation" / "evaluation.json", plain / "evaluation" / "evaluation.json"
    )]  # fmt: skip
    assert tokens[0] == tokens[1]


def test_context_and_dropped_leave_the_same_answers_to_train(run: Callable[..., Path]) -> None:
    context, dropped = (
        run("context", ", rationale: {tag: think, weight: 0}"),
        run("dropped", ", rationale: {tag: think, keep: false}"),
    )
    rows = []
    for folder in (context, dropped):
        kept = [s.ids[s.kept + 1].tolist() for s in read_sequences(folder / "sequences" / "train.arrow")]
        rows.append(kept)
    assert [row[1:] for row in rows[0]] == rows[1]  # as context, the space behind it is trained
    sample = json.loads((context / "evaluation" / "evaluation.json").read_text())["samples"][0]
    assert sample["prompt"].endswith("</think>")
    assert sample["reference"].startswith(" so")
