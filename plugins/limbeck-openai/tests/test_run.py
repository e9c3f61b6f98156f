"""A whole run whose teacher is an endpoint: its faults, its budget, its key."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

KEY = "sk-run-0123456789abcdef"
LIMBECK = str(Path(sys.executable).with_name("limbeck"))
RECIPE = """
teacher:
  plugin: openai
  base_url: {address}
  model: small
  key_env: MY_KEY
  concurrency: 4
  price: {{input: 1.0, output: 2.0}}
  cache: answers
  budget: {{tokens: {tokens}}}
student: {{model: student}}
data:
  generator: {{plugin: prompts, path: prompts.jsonl, max_new_tokens: 16, min_success_ratio: {ratio}}}
losses: [{{plugin: sequence_kd}}]
training: {{num_train_epochs: 1, per_device_train_batch_size: 8}}
output: out
"""


@pytest.fixture
def limbeck(tmp_path):
    """Runs the recipe, with the key in the environment; every output is kept."""
    pytest.importorskip("torch")
    from limbeck.testing.tiny import tiny_model_folder

    tiny_model_folder(tmp_path / "student", Path(__file__).parents[3] / "tests" / "data" / "tok_a", layers=2)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Q{i}"}}\n' for i in range(30)))
    outputs = []

    def run(command, server, tokens=100_000, ratio=0.5):
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(address=server.base_url, tokens=tokens, ratio=ratio))
        environment = {**os.environ, "MY_KEY": KEY, "OPENAI_LOG": "debug", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [LIMBECK, command, str(tmp_path / "recipe.yaml")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        outputs.extend([done.stdout, done.stderr])
        return done

    run.outputs = outputs
    return run


def test_a_run_stops_at_its_budget_goes_on_with_a_larger_one_and_shows_the_key_nowhere(limbeck, serve, tmp_path):
    faults = [
        {"status": 429, "headers": {"retry-after-ms": "100"}},
        {"status": 500, "body": {"error": {"message": f"Oh {KEY}."}}},
        {"finish": "length"},
        {"message": {"content": None, "refusal": "No."}},
        {"text": f"I know {KEY}."},
    ]
    server = serve(*faults, slow=0.02)
    checked = limbeck("check", server)
    assert checked.returncode == 0, checked.stderr
    assert not server.asked
    first = limbeck("run", server, tokens=400)
    assert first.returncode == 1
    assert "BUDGET_EXHAUSTED" in first.stderr
    assert "of 400 tokens are used" in first.stderr
    second = limbeck("run", server)
    assert second.returncode == 0, second.stderr
    assert len(server.asked) == 30 + 2
    assert max(Counter(server.paid).values()) == 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows" / "rows.jsonl").read_text().splitlines()]
    rejected = (tmp_path / "out" / "rows" / "rejected.jsonl").read_text().splitlines()
    assert (len(rows), len(rejected)) == (29, 1)
    assert sum(row["finish_reason"] == "length" for row in rows) == 1
    (told,) = (tmp_path / "out" / "answers").rglob("usage.json")
    usage = json.loads(told.read_text())["usage"]
    assert (usage["calls"], usage["retries"], usage["prompt_tokens"]) == (32, 2, 300)
    assert usage["cost"] == pytest.approx((300 + 2 * 150) / 1e6)
    texts = [*limbeck.outputs, *(f.read_bytes().decode("latin-1") for f in tmp_path.rglob("*") if f.is_file())]
    assert len(texts) > 20
    assert not [text for text in texts if KEY in text or KEY[-12:] in text]


def test_too_few_usable_answers_fail_the_run_with_counts_by_reason(limbeck, serve):
    server = serve(*[{"finish": "content_filter"}, {"message": {"refusal": "No."}}] * 30)
    done = limbeck("run", server, ratio=0.9)
    assert done.returncode == 1
    assert "GENERATION_FAILED" in done.stderr
    assert "content_filter" in done.stderr
    assert "refused" in done.stderr
    assert len(server.asked) <= 16  # the smoke gate's
