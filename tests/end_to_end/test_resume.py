"""What a resume refuses and allows; full disks; runs without a teacher, with an online one, with another backend."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import command, environment, events_of

Inside = Callable[..., tuple[int, str, str]]


def test_a_changed_recipe_is_refused_naming_each_difference(copied: Path, inside: Inside) -> None:
    recipe = copied / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("1.0e-3", "2.0e-3").replace("top_k: 16", "top_k: 8"))
    code, _, err = inside("resume", recipe)
    assert code == 3
    assert "training.learning_rate: was 0.001, is 0.002" in err
    assert "losses[0].top_k: was 16, is 8" in err
    assert "--allow-changed" in err
    assert len(err.strip().splitlines()) == 3
    recipe.write_text(text.replace("samples: 1", "samples: 0"))
    code, _, err = inside("resume", recipe, "--allow-changed")
    assert code == 0, err


def test_a_project_that_moved_as_a_whole_is_the_same_run(copied: Path, inside: Inside) -> None:
    code, out, err = inside("resume", copied / "run")
    assert code == 0, err
    assert "train: there already" in out
    assert str(copied) in (copied / "run" / "resolved.yaml").read_text()


def test_a_recipe_that_is_gone_is_named_with_both_places(copied: Path, inside: Inside) -> None:
    inside("resume", copied / "run")
    moved = copied.rename(copied.parent / "moved")
    (moved / "recipe.yaml").rename(moved / "other.yaml")
    code, _, err = inside("resume", moved / "run")
    assert code == 3
    assert str(moved / "recipe.yaml") in err
    assert str(copied / "recipe.yaml") in err
    code, _, err = inside("resume", moved / "other.yaml")
    assert code == 0, err


def test_nothing_to_resume_says_how_to_start(copied: Path, inside: Inside) -> None:
    import shutil

    shutil.rmtree(copied / "run")
    code, _, err = inside("resume", copied / "recipe.yaml")
    assert code == 3
    assert f"limbeck run {copied / 'recipe.yaml'}" in err
    assert not (copied / "run").exists()


@pytest.mark.parametrize("size", [60_000, 150_000], ids=["weights do not fit", "optimizer does not fit"])
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    size: int, finished: Path, tmp_path: Path, kill_points: object, inside: Inside
) -> None:
    """A limit on the size of a file stands for the disk: the first checkpoint does not fit."""
    recipe = kill_points.make_project(tmp_path)  # type: ignore[attr-defined]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    done = subprocess.run(
        command("run", recipe),
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=limit,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DISK_FULL" in done.stderr
    assert str(tmp_path / "run") in done.stderr
    assert "bytes are free" in done.stderr
    assert "Traceback" not in done.stderr
    *_, failed, state = events_of(tmp_path / "run")
    assert failed["run_failed"]["reason"] == "DISK_FULL"
    assert state["state_changed"]["state"] == "RUN_STATE_FAILED"
    assert state["state_changed"]["error"]["reason"] == "DISK_FULL"
    code, _, err = inside("run", recipe)
    assert code == 0, err
    assert kill_points.differences(tmp_path / "run", finished / "run") == []  # type: ignore[attr-defined]


def _unfinished(run: Path, stage: str) -> None:
    """As a kill in this stage leaves its record."""
    record = run / "stages" / f"{stage}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))


@pytest.mark.parametrize("tail", ["torn", "no newline"])
def test_a_torn_tail_of_generated_rows_is_mended_said_and_loses_nothing(
    tail: str, finished: Path, copied: Path, kill_points: object, inside: Inside
) -> None:
    rows = copied / "run" / "rows" / "rows.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-40] if tail == "torn" else whole[:-1])
    _unfinished(copied / "run", "generate")
    code, out, err = inside("resume", copied / "run")
    assert code == 0, err
    assert "LOG_MENDED" in out
    assert rows.read_bytes() == whole
    assert kill_points.differences(copied / "run", finished / "run") == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["rows/rows.jsonl", "events.jsonl"])
def test_a_hole_in_a_log_is_an_error_that_names_the_line_and_leaves_the_file_alone(
    name: str, copied: Path, inside: Inside
) -> None:
    path = copied / "run" / name
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    _unfinished(copied / "run", "generate")
    code, _, err = inside("resume", copied / "run")
    assert code == 3
    assert "LOG_DAMAGED" in err
    assert f"{path}:3: a hole of zero bytes" in err
    assert path.read_bytes() == b"".join(lines)


def test_damaged_signals_are_set_aside_said_and_captured_again(
    finished: Path, copied: Path, kill_points: object, inside: Inside
) -> None:
    shard = next((copied / "run" / "signals" / "train").glob("shard-*.arrow"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    _unfinished(copied / "run", "label")
    code, out, err = inside("resume", copied / "run")
    assert code == 0, err
    assert "STORE_MENDED" in out
    assert list((copied / "run" / "signals" / "train" / "damaged").iterdir())
    assert kill_points.differences(copied / "run", finished / "run") == []  # type: ignore[attr-defined]


ROWS = "".join(f'{{"prompt": "Say {i}: ", "completion": "number {i}"}}\n' for i in range(12))


@pytest.mark.parametrize(
    ("teacher", "losses", "signals"),
    [
        ("", "{plugin: cross_entropy}", "cached"),
        ("teacher: {plugin: transformers, model: TEACHER}", "{plugin: cross_entropy}", "cached"),
        ("teacher: {plugin: transformers, model: TEACHER}", "{plugin: reverse_kl, top_k: 8}", "online"),
        (
            "teacher: {plugin: transformers, model: TEACHER}",
            "{plugin: hidden_mse, layers: [[1, 2], [-1, -1]]}",
            "online",
        ),
    ],
    ids=["no teacher", "no signal", "online", "hidden states"],
)
def test_other_ways_to_train_run_to_the_report(
    teacher: str, losses: str, signals: str, tiny_teacher: Path, tiny_student: Path, tmp_path: Path, inside: Inside
) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{teacher.replace('TEACHER', str(tiny_teacher))}\nstudent: {{model: {tiny_student}}}\n"
        f"data: {{path: rows.jsonl, holdout: 2}}\nlosses: [{losses}]\n"
        f"signals: {{source: {signals}}}\ntraining: {{max_steps: 2, per_device_train_batch_size: 4}}\n"
        "evaluation: {samples: 1, max_new_tokens: 4}\noutput: out\n"
    )
    code, out, err = inside("run", recipe)
    assert code == 0, err
    assert "report" in out
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    assert not (tmp_path / "out" / "signals" / "train").exists()
    assert (tmp_path / "out" / "signals" / "holdout").exists() == bool(teacher)


def test_a_teacher_of_another_distribution_serves_a_student_from_scratch(
    data: Path, tmp_path: Path, inside: Inside
) -> None:
    pytest.importorskip("limbeck_echo")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: echo, tokenizer: {data / 'tok_a'}}}\n"
        "student: {config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
        "num_attention_heads: 2, num_key_value_heads: 1}}\n"
        "data: {path: rows.jsonl, holdout: 2}\nlosses: [{plugin: forward_kl, top_k: 8}]\n"
        "training: {max_steps: 2}\nevaluation: {samples: 1, max_new_tokens: 4}\noutput: out\n"
    )
    code, _, err = inside("run", recipe)
    assert code == 0, err
    evaluation = json.loads((tmp_path / "out" / "evaluation" / "evaluation.json").read_text())
    assert evaluation["models"]["teacher"]["perplexity"] > 1
    assert evaluation["samples"][0]["teacher"]


def test_a_folder_that_is_not_there_is_no_run(tmp_path: Path, inside: Inside) -> None:
    code, _, err = inside("resume", tmp_path / "nope")
    assert code == 3
    assert "there is no run here" in err


def test_a_changed_recipe_trains_a_finished_run_anew_so_that_its_report_is_true(copied: Path, inside: Inside) -> None:
    recipe, weights = copied / "recipe.yaml", copied / "run" / "student" / "model.safetensors"
    before = weights.read_bytes()
    recipe.write_text(recipe.read_text().replace("1.0e-3", "2.0e-3"))
    code, _, err = inside("resume", recipe, "--allow-changed")
    assert code == 0, err
    assert weights.read_bytes() != before
    assert "2.0e-3" in (copied / "run" / "student" / "README.md").read_text()


def test_a_copy_of_a_run_does_not_go_on_in_the_folder_that_it_was_copied_from(copied: Path, inside: Inside) -> None:
    inside("resume", copied / "run")
    events = (copied / "run" / "events.jsonl").read_bytes()
    shutil.copytree(copied / "run", copied / "again")
    code, _, err = inside("resume", copied / "again")
    assert code == 3
    assert str(copied / "run") in err
    assert f"output: {copied / 'again'}" in err
    assert (copied / "run" / "events.jsonl").read_bytes() == events
