"""The main job on tiny models: one command from the recipe to the report."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.plugins import load_plugins
from limbeck.recipe import load_recipe
from limbeck.report import Evaluation
from limbeck.runs import run_recipe
from limbeck.v1.event_pb2 import Event

from .conftest import environment, events_of, kinds

STAGES = ["generate", "prepare", "label", "train", "twin", "evaluate", "report"]


def test_a_run_leaves_the_student_the_figures_and_the_report(finished: Path) -> None:
    run = finished / "run"
    evaluation = Evaluation.model_validate_json((run / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation.models) == {"teacher", "untrained", "twin", "student"}
    student, untrained = evaluation.models["student"], evaluation.models["untrained"]
    assert student.forward_kl is not None
    assert untrained.forward_kl is not None
    assert student.forward_kl < untrained.forward_kl
    assert evaluation.models["teacher"].forward_kl == 0
    assert all(m.perplexity and m.parameters and m.tokens_per_second for m in evaluation.models.values())
    assert evaluation.models["student"].parameters == evaluation.models["twin"].parameters
    assert len(evaluation.samples) == 1
    assert all(getattr(evaluation.samples[0], name) is not None for name in evaluation.models)
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert "Top-1 agreement" in (run / "student" / "README.md").read_text()


def test_the_student_loads_with_transformers_alone(finished: Path) -> None:
    code = "import sys; sys.modules['limbeck'] = None\n"
    code += "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    code += f"m, info = AutoModelForCausalLM.from_pretrained({str(finished / 'run' / 'student')!r}, "
    code += "output_loading_info=True)\n"
    code += f"t = AutoTokenizer.from_pretrained({str(finished / 'run' / 'student')!r})\n"
    code += "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
    code += "print(m.config.num_hidden_layers, m(**t('hi', return_tensors='pt')).logits.shape[-1])\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(), timeout=120
    )
    assert done.stdout.split() == ["2", "261"], done.stderr


def test_the_history_is_gap_free_and_names_every_stage(finished: Path) -> None:
    events = events_of(finished / "run")
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert kinds(events)[0] == "run_started"
    assert kinds(events)[-2:] == ["run_finished", "state_changed"]
    for stage in STAGES:
        said = kinds(events, stage)
        assert said[0] == ("stage_started" if stage == "twin" else "state_changed"), stage
        assert said[-1] == "stage_finished", stage
    states = [
        event["state_changed"]["state"].removeprefix("RUN_STATE_") for event in events if "state_changed" in event
    ]
    assert states == [
        "GENERATING", "PREPARING", "LABELLING", "TRAINING", "EVALUATING", "REPORTING", "SUCCEEDED",
    ]  # fmt: skip
    metrics = [event["metrics"]["values"] for event in events if event.get("stage") == "train" and "metrics" in event]
    assert len(metrics) == 8
    assert all({"loss", "losses.forward_kl", "losses.cross_entropy", "learning_rate"} <= set(one) for one in metrics)
    changed = [event["knob_changed"] for event in events if "knob_changed" in event]
    assert {"knob": "losses.forward_kl.temperature", "before": 2.0, "after": 1.0} in changed


def test_the_history_shows_texts_and_the_figures_of_each_model(finished: Path) -> None:
    events = events_of(finished / "run")
    rows = [json.loads(line) for line in (finished / "run" / "rows" / "rows.jsonl").read_text().splitlines()]
    written = [event["sample"] for event in events if "sample" in event and event["stage"] == "generate"]
    assert written == [{"model": "teacher", "prompt": row["prompt"], "text": row["completion"]} for row in rows[:3]]
    evaluation = json.loads((finished / "run" / "evaluation" / "evaluation.json").read_text())
    told = {event["evaluation"]["model"]: event["evaluation"]["figures"] for event in events if "evaluation" in event}
    assert list(told) == ["teacher", "untrained", "twin", "student"]
    for model, figures in told.items():
        assert figures == {name: value for name, value in evaluation["models"][model].items() if value is not None}
    texts = evaluation["samples"][0]
    shown = [event["sample"] for event in events if "sample" in event and event["stage"] == "evaluate"]
    assert [(one["model"], one["prompt"], one["text"]) for one in shown] == [
        (model, texts["prompt"], texts[model]) for model in ("teacher", "student")
    ]


def test_what_a_library_says_is_in_the_history_once(copied: Path) -> None:
    registry = load_plugins()
    recipe = load_recipe(copied / "recipe.yaml", registry)
    library = logging.getLogger("a.library")

    def display(event: Event) -> None:
        library.warning("it is slow here")  # in the middle of an event, and at each

    run_recipe(recipe, registry, display=display)
    second = [event for event in events_of(copied / "run") if event["attempt"] == 2]
    said = [event["log"] for event in second if "log" in event]
    assert said == [{"level": "WARNING", "logger": "a.library", "message": "it is slow here"}]
    assert kinds(second)[-2:] == ["run_finished", "state_changed"]


def test_plain_output_has_a_few_lines_a_stage_no_codes_and_a_summary(finished: Path) -> None:
    text = (finished / "stdout.txt").read_text()
    assert "\x1b" not in text
    assert "\r" not in text
    for stage in STAGES:
        lines = [line for line in text.splitlines() if line.startswith(f"{stage}:")]
        assert 2 <= len(lines) <= 11, lines
    for name in ("teacher", "untrained", "twin", "student"):
        assert any(line.startswith(name) for line in text.splitlines())
    assert str(Path("run", "report", "index.html")) in text


def test_a_finished_run_is_not_run_again_and_imports_no_torch(copied: Path) -> None:
    code = "import sys; from limbeck.cli.main import run\n"
    code += f"code = run(['run', {str(copied / 'recipe.yaml')!r}])\n"
    code += "heavy = {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
    code += "print(code, sorted(heavy))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(), timeout=120
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    second = [event for event in events_of(copied / "run") if event["attempt"] == 2]
    assert all(event["stage_finished"]["skipped"] for event in second if "stage_finished" in event)
    assert kinds(second).count("stage_finished") == len(STAGES)
    assert "stage_started" not in kinds(second)


def test_another_loss_weight_trains_again_over_the_same_signals(
    copied: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    recipe = copied / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("weight: 0.9", "weight: 0.7").replace("twin: true", "twin: false"))
    before = (copied / "run" / "student" / "model.safetensors").read_bytes()
    code, _, err = inside("run", recipe)
    assert code == 0, err
    second = [event for event in events_of(copied / "run") if event["attempt"] == 2]
    skipped = [e["stage"] for e in second if "stage_finished" in e and e["stage_finished"].get("skipped")]
    assert skipped == ["generate", "prepare", "label"]
    assert (copied / "run" / "student" / "model.safetensors").read_bytes() != before
    kept = list((copied / "run" / "former").glob("train-*/student/model.safetensors"))
    assert [file.read_bytes() for file in kept] == [before]
    assert any(event["warning"]["reason"] == "STAGE_OUTDATED" for event in second if "warning" in event)
    told = [event["warning"]["message"] for event in second if "warning" in event and event.get("stage") == "train"]
    assert any("losses[0].config.weight: was 0.9, is 0.7" in message for message in told), told


def test_json_output_is_json_lines_only_whatever_plugins_print(
    tmp_path: Path, copied: Path, data: Path, limbeck: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    site = tmp_path / "site"
    info = site / "noisy_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "noisy_plugin.py").write_bytes((data / "C48" / "noisy_plugin.py").read_bytes())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck.plugins]\nnoisy = noisy_plugin\n")
    done = limbeck("run", copied / "recipe.yaml", "--json", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    events, result = lines[:-1], lines[-1]
    assert events == [event for event in events_of(copied / "run") if event["attempt"] == 2]
    assert Path(result["result"]["student"]).is_dir()
    assert "noisy plugin loaded" in done.stderr


def test_a_reader_that_closes_early_ends_a_run_quietly_and_it_can_go_on(
    kill_points: object, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    recipe = kill_points.make_project(tmp_path, prompts=8)  # type: ignore[attr-defined]
    recipe.write_text(recipe.read_text().replace("twin: true", "twin: false"))
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck.cli.main", "run", str(recipe), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        error = process.stderr.read().decode()
    assert process.wait(120) == 141
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
    assert kinds(events_of(tmp_path / "run"))[-2] == "run_interrupted"
    code, _, err = inside("resume", tmp_path / "run")
    assert code == 0, err


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_an_error_is_told_without_a_traceback_and_with_its_code(
    tmp_path: Path, option: list[str], inside: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = inside("run", tmp_path / "missing.yaml", *option)
    assert code == 2
    text = json.loads(out)["error"]["reason"] if option else err
    assert "RECIPE_INVALID" in text


def test_a_run_warns_of_what_check_warns_of_and_of_its_rows(
    tiny_teacher: Path, tmp_path: Path, inside: Callable[..., tuple[int, str, str]]
) -> None:
    rows = [{"prompt": f"Say {i}: ", "completion": "x" * (60 if i < 8 else 3)} for i in range(12)]
    bad = {"prompt": "", "completion": "", "wrong": 1}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, bad]))
    recipe = tmp_path / "recipe.yaml"
    text = (
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n"
        "data: {path: rows.jsonl, holdout: 2, max_length: 20, on_bad_row: quarantine}\n"
        "losses: [{plugin: forward_kl, top_k: 8}]\noutput: out\n"
    )
    recipe.write_text(text)
    code, _, err = inside("label", recipe)
    assert code == 0, err
    warnings = [event["warning"] for event in events_of(tmp_path / "out") if "warning" in event]
    assert [w["message"].split(";")[0] for w in warnings if w["reason"] == "ROWS_QUARANTINED"] == ["1 row set aside"]
    noted = [w["message"] for w in warnings if w["reason"] == "ROWS_NOTED"]
    assert len(noted) == 6
    assert "rows.jsonl:1" in noted[0]
    assert noted[5] == "3 more of such; limbeck preview recipe.yaml lists them"
    assert "PREFLIGHT" not in [w["reason"] for w in warnings]
    recipe.write_text(text.replace("max_length: 20", "max_length: 100000"))
    code, out, err = inside("label", recipe)
    assert code == 0, err
    assert "max_length is 100000, and a leading <bos> comes on top; the teacher reads at most" in out
    told = [event["warning"]["reason"] for event in events_of(tmp_path / "out") if "warning" in event]
    assert told.count("PREFLIGHT") == 1
