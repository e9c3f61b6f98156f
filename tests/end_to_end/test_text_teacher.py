"""A run whose teacher is asked with text: whole, killed, stopped by its budget, held up at the gate; what it costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Config, TeacherPlugin, TextCompletion
from limbeck.plugins import Entry, Registry, load_plugins
from limbeck.recipe import load_recipe
from limbeck.runs.pipeline import run_recipe
from limbeck.testing.text_teachers import ScriptedTextTeacher
from limbeck.testing.tiny import tiny_model_folder

from .conftest import Limbeck, command, environment, events_of, kinds

Inside = Callable[..., tuple[int, str, str]]
PROMPTS = 40
RECIPE = """\
teacher: {plugin: echo-text, price: [1000, 2000]}
student: {model: student}
data:
  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 12}
  holdout: 4
losses: [{plugin: sequence_kd}]
training: {learning_rate: 1.0e-2, max_steps: 4, per_device_train_batch_size: 4, save_steps: 3}
evaluation: {samples: 2, max_new_tokens: 8}
output: run
"""


def words(number: int) -> str:
    return f"Say which of these {number} rivers is the longest: Po, Rhine or Danube?"


@pytest.fixture
def project(tmp_path: Path, tiny_student: Path) -> Callable[..., Path]:
    """A recipe with 40 prompts, some of its lines changed; a second call changes it again."""

    def call(changes: dict[str, str] | None = None) -> Path:
        (tmp_path / "student").exists() or (tmp_path / "student").symlink_to(tiny_student)
        rows = [{"prompt": words(number)} for number in range(PROMPTS)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = RECIPE
        for before, after in (changes or {}).items():
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "recipe.yaml").write_text(text)
        return tmp_path / "recipe.yaml"

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def told_of(run: Path, stage: str) -> list[dict[str, Any]]:
    """The events of a stage, while they are being written too."""
    whole = (run / "events.jsonl").read_bytes().rpartition(b"\n")[0] if (run / "events.jsonl").exists() else b""
    return [event for event in map(json.loads, whole.splitlines()) if event.get("stage") == stage]


def usage(recipe: Path) -> dict[str, float]:
    (file,) = (recipe.parent / "run" / "answers").glob("*/usage.json")
    found: dict[str, float] = json.loads(file.read_text())["usage"]
    return found


def answers(run: Path) -> list[bytes]:
    """The answers that are on disk."""
    return [line for file in (run / "answers").glob("*/answers.jsonl") for line in file.read_bytes().splitlines()]


class NoConfig(Config):
    """Nothing to say."""


def scripted(teacher: ScriptedTextTeacher) -> Registry:
    """The installed plugins, with `echo-text` played by a scripted teacher."""
    own = TeacherPlugin(name="scripted", config=NoConfig, factory=lambda config: teacher, summary="a script")
    return Registry((*load_plugins().entries, Entry(own, "teacher", "limbeck-scripted", "1")), ())


def played(recipe: Path, teacher: ScriptedTextTeacher) -> Path:
    """Run as far as the sequences."""
    registry = scripted(teacher)
    return run_recipe(load_recipe(recipe, registry), registry, until="prepare")


SCRIPTED = {"{plugin: echo-text, price: [1000, 2000]}": "{plugin: scripted}"}


# ------------------------------------------------------------------------------------------------------ the whole run


def test_a_run_on_the_teachers_text_ends_with_a_student_a_report_and_its_cost(
    project: Callable[..., Path], inside: Inside
) -> None:
    recipe = project({"price: [1000, 2000]": "price: [1000, 2000], refuses: ['these 7 rivers', 'these 8 rivers']"})
    code, out, err = inside("run", recipe)
    assert code == 0, err
    run = recipe.parent / "run"
    rows, rejected = lines(run / "rows" / "rows.jsonl"), lines(run / "rows" / "rejected.jsonl")
    assert len(rows) == PROMPTS - 2
    assert [line["rejected"] for line in rejected] == ["refused"] * 2
    lineage = rows[0]["lineage"]
    assert lineage["teacher"]["model"] == "echo-0"
    assert lineage["answer"]["model"] == "echo-0"
    assert lineage["answer"]["prompt_tokens"] == 13
    assert lineage["sampling"]["max_new_tokens"] == 12
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["evaluation"]["aim"] == "text"
    assert set(report["evaluation"]["models"]) == {"untrained", "student"}
    assert report["verdict"]["outcome"] == "better"
    assert "The student beats the untrained student: on held-out answers that the teacher wrote" in out
    sample = report["evaluation"]["samples"][0]
    assert sample["reference"] is None
    assert sample["teacher"] in {row["completion"] for row in rows}
    told = report["rows"]
    assert (told["made"], told["rejected"], told["calls"]) == (PROMPTS - 2, {"refused": 2}, PROMPTS)
    spent = usage(recipe)
    assert told["cost"] == pytest.approx(spent["cost"])
    assert spent["cost"] == pytest.approx((1000 * spent["prompt_tokens"] + 2000 * spent["completion_tokens"]) / 1e6)
    assert told["currency"] == "USD"
    page = (run / "report" / "index.html").read_text()
    assert "2 answers kept apart: 2 refused" in page
    assert f"40 calls, {spent['prompt_tokens']:,} tokens read" in page
    assert "KL is on" not in page
    assert "2 answers kept apart: 2 refused. The teacher: 40 calls" in out


def test_a_finished_run_is_not_asked_again_and_another_price_or_student_changes_no_row(
    project: Callable[..., Path], inside: Inside, tmp_path: Path, data: Path
) -> None:
    tiny_model_folder(tmp_path / "other", data / "tok_b")  # with another tokenizer, too
    recipe = project()
    assert inside("run", recipe)[0] == 0
    before = lines(recipe.parent / "run" / "rows" / "rows.jsonl")
    project({"price: [1000, 2000]": "price: [7, 9], delay: 0.0001", "model: student": "model: other"})
    code, out, err = inside("run", recipe)
    assert code == 0, err
    assert "generate: there already" in out
    assert lines(recipe.parent / "run" / "rows" / "rows.jsonl") == before
    assert usage(recipe)["calls"] == PROMPTS
    project({"price: [1000, 2000]": "seed: 1"})
    code, out, _ = inside("run", recipe)
    assert code == 0
    assert "its former output was kept in former/generate" in out
    assert lines(recipe.parent / "run" / "rows" / "rows.jsonl") != before


def test_events_and_plain_lines_tell_the_cost_while_it_arises(project: Callable[..., Path], limbeck: Limbeck) -> None:
    recipe = project({"price: [1000, 2000]": "price: [1000, 2000], delay: 0.08"})
    done = limbeck("run", recipe)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("generate: ") and " of about $" in line]
    assert told
    assert "\x1b" not in done.stdout
    spent = usage(recipe)
    values = [e["metrics"]["values"] for e in told_of(recipe.parent / "run", "generate") if "metrics" in e]
    assert len(values) >= 2
    assert [value["teacher.calls"] for value in values] == sorted(value["teacher.calls"] for value in values)
    assert values[-1]["teacher.calls"] == PROMPTS
    assert values[-1]["teacher.cost.USD"] == pytest.approx(spent["cost"])


def test_without_a_price_tokens_are_told_alone(project: Callable[..., Path], inside: Inside) -> None:
    recipe = project({", price: [1000, 2000]": ""})
    code, out, _ = inside("run", recipe)
    assert code == 0
    assert "40 calls, " in out
    assert "$" not in out
    assert json.loads((recipe.parent / "run" / "report" / "report.json").read_text())["rows"]["cost"] is None


def test_json_stays_json(project: Callable[..., Path], limbeck: Limbeck) -> None:
    done = limbeck("run", project(), "--json")
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines())


# ---------------------------------------------------------------------------------------------- stopping and going on


def test_a_run_killed_while_it_generates_goes_on_and_pays_for_no_answer_twice(
    project: Callable[..., Path], inside: Inside, tmp_path: Path
) -> None:
    recipe = project({"price: [1000, 2000]": "delay: 0.1"})
    with (tmp_path / "stderr.txt").open("wb") as file:
        process = subprocess.Popen(command("run", recipe), stdout=subprocess.DEVNULL, stderr=file, env=environment())
    deadline = time.monotonic() + 120
    while process.poll() is None and len(answers(tmp_path / "run")) < 22:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    before = len(answers(tmp_path / "run"))
    assert 22 <= before < PROMPTS
    assert usage(recipe)["calls"] <= before  # those of its last second were not written down any more
    code, _, err = inside("run", recipe)
    assert code == 0, err
    rows = lines(tmp_path / "run" / "rows" / "rows.jsonl")
    assert [row["lineage"]["position"] for row in rows] == list(range(PROMPTS))
    again = project({"price: [1000, 2000]": "seed: 0", "output: run": "output: never-stopped"})
    assert inside("run", again)[0] == 0
    assert lines(tmp_path / "never-stopped" / "rows" / "rows.jsonl") == rows
    whole = json.loads(next((tmp_path / "never-stopped" / "answers").glob("*/usage.json")).read_text())
    assert usage(recipe) == whole["usage"]


@pytest.mark.parametrize("reason", [Reason.BUDGET_EXHAUSTED, Reason.TEACHER_REFUSED, Reason.SERVER_UNAVAILABLE])
def test_what_concerns_all_prompts_stops_the_run_with_everything_kept(
    project: Callable[..., Path], reason: Reason
) -> None:
    recipe = project(SCRIPTED)
    stop = LimbeckError(reason, problems=[Problem("no more", field="teacher.budget")])
    script = [f"answer {number}" for number in range(PROMPTS)]
    script[20] = stop
    teacher = ScriptedTextTeacher(*script)
    with pytest.raises(LimbeckError) as caught:
        played(recipe, teacher)
    assert caught.value.reason is reason
    rows = recipe.parent / "run" / "rows"
    assert len(lines(rows / "rows.jsonl")) == 16  # the last prompts of a window are answered first
    assert len(answers(recipe.parent / "run")) == 16 + 19
    assert usage(recipe)["calls"] == 35
    assert kinds(events_of(recipe.parent / "run"))[-2] == "run_failed"
    played(recipe, teacher)
    assert sorted(teacher.asked) == list(range(PROMPTS))
    assert usage(recipe)["calls"] == PROMPTS
    assert [row["completion"] for row in lines(rows / "rows.jsonl")] == [
        "an answer at last" if number == 20 else f"answer {number}" for number in range(PROMPTS)
    ]


def test_a_signal_stops_a_run_whose_answer_is_long_in_coming(project: Callable[..., Path], tmp_path: Path) -> None:
    recipe = project({"price: [1000, 2000]": "delay: 600"})
    with (tmp_path / "stderr.txt").open("wb") as file:
        process = subprocess.Popen(command("run", recipe), stdout=subprocess.DEVNULL, stderr=file, env=environment())
    deadline = time.monotonic() + 120
    while not told_of(tmp_path / "run", "generate"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert kinds(events_of(tmp_path / "run"))[-2] == "run_interrupted"
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


def test_more_prompts_other_thresholds_and_a_way_back_ask_only_what_is_new(project: Callable[..., Path]) -> None:
    recipe, teacher = project(SCRIPTED), ScriptedTextTeacher(*[f"answer {number}" for number in range(PROMPTS + 2)])
    played(recipe, teacher)
    with (recipe.parent / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "one more"}) + "\n")
    played(recipe, teacher)
    assert sorted(teacher.asked) == list(range(PROMPTS + 1))
    project({**SCRIPTED, "max_new_tokens: 12}": "max_new_tokens: 12, min_success_ratio: 1.0}"})
    played(recipe, teacher)
    assert len(lines(recipe.parent / "run" / "rows" / "rows.jsonl")) == PROMPTS
    project({**SCRIPTED, "max_new_tokens: 12}": "max_new_tokens: 13}"})
    played(recipe, teacher)
    project(SCRIPTED)
    played(recipe, teacher)
    assert len(teacher.asked) == PROMPTS + 1 + PROMPTS
    assert usage(recipe)["calls"] == PROMPTS + 1 + PROMPTS


# ----------------------------------------------------------------------------------------------------- rejected rows


def test_rejected_and_cut_answers_are_told_apart_and_counted(project: Callable[..., Path]) -> None:
    recipe = project(SCRIPTED)
    cut = TextCompletion(0, "only the beg", "length")
    refused = TextCompletion(0, "I cannot", "stop", "refused")
    filtered = TextCompletion(0, "", "stop", "content_filter")
    failed = [TextCompletion(0, "", "stop", f"failed: {fact}") for fact in ("500", "a timeout")]
    played(recipe, ScriptedTextTeacher("fine", "good", "", cut, refused, filtered, *failed, "well", "right"))
    (finished,) = [e for e in told_of(recipe.parent / "run", "generate") if "stage_finished" in e]
    figures = finished["stage_finished"]["figures"]
    assert (figures["rows"], figures["rejected"], figures["truncated"]) == (20, 20, 4)
    reasons = {name.removeprefix("rejected."): count for name, count in figures.items() if name.startswith("rejected.")}
    assert reasons == {"empty": 4, "refused": 4, "content_filter": 4, "failed": 8}
    tokens = {row["completion"]: row["finish_reason"] for row in lines(recipe.parent / "run" / "rows" / "rows.jsonl")}
    assert tokens["only the beg"] == "length"


def test_a_lower_threshold_is_enough_for_what_was_rejected(project: Callable[..., Path]) -> None:
    recipe, teacher = project(SCRIPTED), ScriptedTextTeacher("fine", "", "")
    with pytest.raises(LimbeckError, match="6 answers are usable, 10 empty"):
        played(recipe, teacher)
    assert len(teacher.asked) == 16
    project({**SCRIPTED, "max_new_tokens: 12}": "max_new_tokens: 12, min_success_ratio: 0.3}"})
    played(recipe, teacher)
    assert sorted(teacher.asked) == list(range(PROMPTS))


def test_prompts_that_failed_are_asked_again_where_the_rows_are_taken_away(project: Callable[..., Path]) -> None:
    failed = TextCompletion(0, "", "stop", "failed: 503")
    recipe, teacher = project(SCRIPTED), ScriptedTextTeacher("fine", "good", failed)
    played(recipe, teacher)
    teacher.script = ("fine", "good", "at last")
    shutil.rmtree(recipe.parent / "run" / "rows")
    played(recipe, teacher)
    assert len(teacher.asked) == PROMPTS + 13
    assert len(lines(recipe.parent / "run" / "rows" / "rows.jsonl")) == PROMPTS


def test_too_few_usable_answers_fail_with_the_counts_and_as_soon_as_they_must(project: Callable[..., Path]) -> None:
    recipe = project({**SCRIPTED, "max_new_tokens: 12}": "max_new_tokens: 12, min_success_ratio: 0.6}"})
    script: list[Any] = [f"answer {number}" for number in range(16)]
    script += [TextCompletion(0, "", "stop", "refused"), TextCompletion(0, "", "stop", "failed: 500")] * 12
    teacher = ScriptedTextTeacher(*script)
    with pytest.raises(LimbeckError) as caught:
        played(recipe, teacher)
    assert caught.value.reason is Reason.GENERATION_FAILED
    told = "16 answers are usable, 8 failed, 9 refused, 7 prompts are left; 24 usable ones are needed"
    assert told in str(caught.value)
    calls = len(teacher.asked)
    with pytest.raises(LimbeckError, match="9 refused"):
        played(recipe, teacher)
    assert len(teacher.asked) == calls


# ----------------------------------------------------------------------------------------------------- the smoke gate


def test_the_gate_asks_sixteen_and_no_more_where_they_cannot_be_trained(project: Callable[..., Path]) -> None:
    recipe = project({**SCRIPTED, "holdout: 4": "holdout: 4\n  max_length: 70"})
    teacher = ScriptedTextTeacher("an answer", price=(1e6, 0))
    script = [f"answer {number}" for number in range(PROMPTS)]
    teacher.script = (*script[:5], "<eos>", *script[6:])
    with pytest.raises(LimbeckError) as caught:
        played(recipe, teacher)
    error = caught.value
    assert error.reason is Reason.GENERATION_FAILED
    assert sorted(teacher.asked) == list(range(16))
    assert "16 calls, 160 tokens read, 80 written, $160.00" in error.message
    assert {(Path(p.file or "").name, p.line) for p in error.problems} == {("prompts.jsonl", 6)}
    with pytest.raises(LimbeckError, match="do not pass"):
        played(recipe, teacher)
    assert len(teacher.asked) == 16
    project({**SCRIPTED, "holdout: 4": "holdout: 4\n  on_bad_row: quarantine"})
    played(recipe, teacher)
    assert sorted(teacher.asked) == list(range(PROMPTS))


def test_a_gate_that_failed_for_the_length_goes_on_with_a_longer_one(project: Callable[..., Path]) -> None:
    longest = max(len(words(number)) for number in range(PROMPTS))
    recipe = project({**SCRIPTED, "holdout: 4": f"holdout: 4\n  max_length: {longest + 2}"})
    teacher = ScriptedTextTeacher("an answer that is longer than what is left")
    with pytest.raises(LimbeckError, match="every usable answer is cut"):
        played(recipe, teacher)
    assert len(teacher.asked) == 16
    project(SCRIPTED)
    played(recipe, teacher)
    assert sorted(teacher.asked) == list(range(PROMPTS))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (TextCompletion(0, "cut", "length"), "every usable answer is cut"),
        (TextCompletion(0, "no", "stop", "refused"), "0 answers are usable, 16 refused"),
        ("", "0 answers are usable, 16 empty"),
    ],
)
def test_the_gate_refuses_answers_that_are_all_cut_or_not_usable(
    project: Callable[..., Path], answer: Any, told: str
) -> None:
    teacher = ScriptedTextTeacher(answer)
    with pytest.raises(LimbeckError, match=told):
        played(project(SCRIPTED), teacher)
    assert len(teacher.asked) == 16


@pytest.mark.parametrize(("rows", "asked"), [(3, 3), (0, PROMPTS)])
def test_the_recipe_says_how_many_answers_the_gate_waits_for(
    project: Callable[..., Path], rows: int, asked: int
) -> None:
    teacher = ScriptedTextTeacher(TextCompletion(0, "cut", "length"))
    recipe = project({**SCRIPTED, "holdout: 4": f"holdout: 4\n  smoke_rows: {rows}"})
    if rows:
        with pytest.raises(LimbeckError):
            played(recipe, teacher)
    else:
        played(recipe, teacher)
    assert len(teacher.asked) == asked


# ------------------------------------------------------------------------------------------------------ the pre-flight


def test_check_tells_calls_and_the_cost_at_most(project: Callable[..., Path], inside: Inside) -> None:
    code, out, err = inside("check", project(), "--json")
    assert code == 0, err
    facts = json.loads(out)["facts"]
    tokens = sum(len(words(number)) + 1 for number in range(PROMPTS))
    told = facts["generation"]
    assert told["calls"] == PROMPTS
    assert told["prompt_tokens"] == pytest.approx(tokens, rel=0.05)
    assert told["completion_tokens_at_most"] == 12 * PROMPTS
    assert told["cost_at_most"] == pytest.approx((1000 * told["prompt_tokens"] + 2000 * 12 * PROMPTS) / 1e6)
    assert facts["teacher"]["model"] == "echo-0"
    assert not (project().parent / "run").exists()


@pytest.mark.parametrize(
    ("losses", "field", "hint"),
    [
        ("[{plugin: forward_kl, top_k: 8}]", "losses[0]", "cross_entropy"),
        ("[{plugin: reverse_kl, top_k: 8}]\nsignals: {source: online}", "losses[0]", "cross_entropy"),
    ],
)
def test_losses_that_text_cannot_serve_are_refused_with_what_can(
    project: Callable[..., Path], inside: Inside, losses: str, field: str, hint: str
) -> None:
    recipe = project({"[{plugin: sequence_kd}]": losses})
    code, out, _ = inside("check", recipe, "--json")
    assert code != 0
    error = json.loads(out)["error"]
    assert error["reason"] == "CAPABILITY_MISSING"
    (problem,) = [one for one in error["problems"] if one["field"].startswith(field)]
    assert hint in problem["hint"]


def test_what_needs_weights_or_signals_is_refused(project: Callable[..., Path], inside: Inside) -> None:
    recipe = project({"{model: student}": "{from: teacher}"})
    code, _, err = inside("check", recipe)
    assert code == 2
    assert "echo-text has no weights on this machine" in err
    recipe = project()
    code, _, err = inside("label", recipe)
    assert code == 2
    assert "echo-text answers with text: there are no signals to capture" in err
    assert not (recipe.parent / "run").exists()
    code, _, err = inside("audit", recipe)
    assert code == 2
    assert "echo-text answers with text" in err


def test_a_text_teacher_beside_rows_that_exist_is_told_to_be_idle(project: Callable[..., Path], inside: Inside) -> None:
    recipe = project({"{plugin: sequence_kd}": "{plugin: cross_entropy}"})
    rows = [{"prompt": words(number), "completion": "The Danube."} for number in range(8)]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = recipe.read_text().replace(
        "  generator: {plugin: prompts, path: prompts.jsonl, max_new_tokens: 12}\n", "  path: rows.jsonl\n"
    )
    recipe.write_text(text)
    code, out, err = inside("run", recipe)
    assert code == 0, err
    assert "is asked nothing" in out
    assert json.loads((recipe.parent / "run" / "report" / "report.json").read_text())["rows"] is None
