"""The pre-flight: all problems in one go, before anything is spent or written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Inside = Callable[..., tuple[int, str, str]]


def _case(data: Path, name: str, teacher: Path, student: Path, target: Path) -> Path:
    """A copy of a case with its placeholders filled in; returns its recipe."""
    shutil.copytree(data / name, target / name)
    recipe = next((target / name).rglob("recipe.yaml"))
    text = recipe.read_text().replace("MODEL_DIR", str(teacher)).replace("STUDENT_DIR", str(student))
    recipe.write_text(text.replace("output: OUT", f"output: {target / 'out'}"))
    return recipe


def test_it_prints_facts_and_the_resolved_recipe_and_writes_nothing(
    copied: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def loaded(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    shutil.rmtree(copied / "run")
    before = sorted(copied.rglob("*"))
    code, out, err = inside("check", copied / "recipe.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["recipe"]["teacher"]["model"] == str(copied / "teacher")
    assert found["recipe"]["data"]["generator"]["path"] == str(copied / "prompts.jsonl")
    assert found["recipe"]["losses"][0]["tail"] == "bucket"
    facts = found["facts"]
    assert facts["output"]["state"] == "new"
    assert facts["data"]["samples"] == 16
    assert facts["teacher"]["vocab_size"] == 261
    assert facts["signals"]["stored"]["temperatures"] == [1.0, 2.0]
    assert facts["parameters"]["student"] < facts["parameters"]["teacher"]
    assert facts["disk"]["free_bytes"] > facts["disk"]["need_bytes"] > 0
    assert facts["memory"]["training_bytes"] > 0
    assert sorted(copied.rglob("*")) == before


def test_the_text_for_people_names_the_next_command(copied: Path, inside: Inside) -> None:
    code, out, err = inside("check", copied / "recipe.yaml")
    assert code == 0, err
    assert f"model: {copied / 'teacher'}" in out
    assert "goes on with run" in out
    assert out.rstrip().endswith(f"ready: limbeck run {copied / 'recipe.yaml'}")
    assert "\x1b" not in out


def test_rows_with_nothing_left_to_train_are_named_before_the_run(
    data: Path, tiny_teacher: Path, tiny_student: Path, tmp_path: Path, inside: Inside
) -> None:
    recipe = _case(data, "C28", tiny_teacher, tiny_student, tmp_path)
    for command in ("check", "run"):
        code, _, err = inside(command, recipe)
        assert code == 2
        assert "rows.jsonl:1" in err
        assert "rows.jsonl:4" in err
        assert "DATA_INVALID" in err
        assert not (tmp_path / "out").exists()
    recipe.write_text(
        recipe.read_text().replace("max_length: 64", "max_length: 64, on_bad_row: quarantine, holdout: 0")
    )
    code, out, err = inside("check", recipe, "--json")
    assert code == 0, err
    facts = json.loads(out)["facts"]["data"]
    assert (facts["quarantined"], facts["truncated"], facts["lost_bytes"]) == (2, 1, 5)


def test_a_student_with_another_tokenizer_is_refused_with_the_alternative(
    data: Path, tiny_teacher: Path, tmp_path: Path, inside: Inside
) -> None:
    from limbeck.testing.tiny import tiny_model_folder

    student = tiny_model_folder(tmp_path / "other", data / "tok_b")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{model: {student}}}\n"
        "data: {path: rows.jsonl}\nlosses: [{plugin: forward_kl}]\noutput: out\n"
    )
    code, _, err = inside("run", recipe)
    assert code == 2
    assert "TOKENIZER_MISMATCH" in err
    assert "take cross_entropy without teacher" in err
    assert not (tmp_path / "out").exists()
    recipe.write_text(f"student: {{model: {student}}}\ndata: {{path: rows.jsonl}}\n")
    with recipe.open("a") as file:
        file.write("losses: [{plugin: cross_entropy}]\noutput: out\n")
    assert inside("check", recipe)[0] == 0


def test_every_kind_of_problem_comes_in_one_go(tiny_teacher: Path, tmp_path: Path, inside: Inside) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": ""}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n"
        "data: {path: rows.jsonl}\nlosses: [{plugin: forward_kl, top_k: 5000}]\noutput: out\n"
    )
    code, out, _ = inside("check", recipe, "--json")
    assert code in (2, 3)
    messages = [problem["message"] for problem in json.loads(out)["error"]["problems"]]
    assert any("thesis.txt" in message for message in messages)
    assert any("top_k is 5000" in message for message in messages)
    assert any("completion" in str(problem) for problem in json.loads(out)["error"]["problems"])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_failing_check_shows_warnings_and_problems_and_no_recipe(
    tiny_teacher: Path, tmp_path: Path, inside: Inside
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher, layers: [9]}}\n"
        "data: {path: rows.jsonl, holdout: 3}\nlosses: [{plugin: forward_kl, top_k: 5000}]\noutput: out\n"
    )
    code, out, err = inside("check", recipe)
    assert code == 2
    assert out == ""
    warning, error, *problems = err.splitlines()
    assert warning.startswith(f"warning: {recipe}:3:1: data.max_length: ")
    assert error.startswith("error: The run cannot start: 3 problems.")
    fields = {"losses[0].top_k": "4:38", "data.holdout": "3:35", "student.layers": "2:34"}
    for problem, (name, place) in zip(problems, fields.items(), strict=True):
        assert problem.startswith(f"  {recipe}:{place}: {name}: ")


def test_faults_of_the_recipe_and_of_what_it_names_are_told_together(
    tiny_teacher: Path, tmp_path: Path, inside: Inside
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compltion": "d"}\n')
    (tmp_path / "out").touch()
    recipe = tmp_path / "recipe.yaml"
    text = f"""\
teacher: {{plugin: transformers, model: {tiny_teacher}}}
student: {{from: teacher, layers: [0, 9], dtyp: float32}}
data: {{path: [rows.jsonl, gone.jsonl], max_lenght: 64}}
losses: [{{plugin: forward_kl, top_k: 5000, wieght: 1}}, {{plugin: cross_entropy, weight: -1}}, {{plugin: none}}]
training: {{lr: 1}}
output: out
"""
    recipe.write_text(text)
    code, out, err = inside("check", recipe, "--json")
    assert (code, err) == (2, "")
    error = json.loads(out)["error"]
    assert error["reason"] == "RECIPE_INVALID"
    assert [(Path(one["file"]).name, one["line"], one["field"]) for one in error["problems"]] == [
        ("recipe.yaml", 2, "student.dtyp"),
        ("recipe.yaml", 3, "data.path[1]"),
        ("recipe.yaml", 3, "data.max_lenght"),
        ("recipe.yaml", 4, "losses[0].wieght"),
        ("recipe.yaml", 4, "losses[1].weight"),
        ("recipe.yaml", 4, "losses[2].plugin"),
        ("recipe.yaml", 5, "training.lr"),
        ("recipe.yaml", 6, "output"),
        ("recipe.yaml", 4, "losses[0].top_k"),
        ("rows.jsonl", 2, "compltion"),
        ("recipe.yaml", 2, "student.layers"),
    ]


UNSURE = {
    "a misspelt on_bad_row": ("data: {path: rows.jsonl, on_bad_rows: quarantine}", "data.on_bad_rows"),
    "a wrong chat_template": ("data: {path: rows.jsonl, chat_template: 3}", "data.chat_template"),
    "a misspelt path": ("data: {paths: rows.jsonl}", "data.paths"),
}


@pytest.mark.parametrize(("data_line", "field"), UNSURE.values(), ids=UNSURE)
def test_rows_are_not_judged_by_a_recipe_that_may_mean_something_else(
    tiny_teacher: Path, tmp_path: Path, inside: Inside, data_line: str, field: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("no row\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n{data_line}\n"
        "losses: [{plugin: forward_kl, top_k: 8}]\noutput: out\n"
    )
    _, out, _ = inside("check", recipe, "--json")
    assert [problem["field"] for problem in json.loads(out)["error"]["problems"]] == [field]


def test_of_a_misspelt_teacher_nothing_more_is_told(tiny_teacher: Path, tmp_path: Path, inside: Inside) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"techer: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n"
        "data: {path: rows.jsonl}\nlosses: [{plugin: forward_kl, top_k: 8}]\noutput: out\n"
    )
    code, _, err = inside("check", recipe)
    assert code == 2
    assert err.splitlines() == [
        "error: recipe.yaml is not a valid recipe: 1 problem. [RECIPE_INVALID]",
        f"  {recipe}:1:1: techer: there is no such field (did you mean teacher?)",
    ]


def test_a_run_tells_the_same_as_its_check(tmp_path: Path, inside: Inside) -> None:
    (tmp_path / "afile").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "teacher: {plugin: transformers, model: ./afile}\nstudent: {model: ./gone}\ndata: {path: rows.jsonl}\n"
        "losses: [{plugin: forward_kl}]\noutput: afile/run\n"
    )
    checked, ran = inside("check", recipe), inside("run", recipe)
    assert checked == ran
    fields = ["student.model", "data.path", "output", "teacher.model"]
    assert [line.split(": ")[1] for line in ran[2].splitlines()[1:]] == fields


def test_a_knob_that_would_leave_its_range_is_refused_before_the_run(
    tiny_teacher: Path, tmp_path: Path, inside: Inside
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n"
        "data: {path: rows.jsonl, holdout: 0}\noutput: out\n"
        "losses: [{plugin: forward_kl, weight: {plugin: linear, start: 1.0, end: -1.0}}]\n"
    )
    code, _, err = inside("check", recipe)
    assert code in (1, 2)
    assert "weight" in err
    assert "at least 0" in err


def test_relative_paths_are_relative_to_the_recipe_wherever_it_is_run_from(
    data: Path,
    tiny_teacher: Path,
    tiny_student: Path,
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = _case(data, "C51", tiny_teacher, tiny_student, tmp_path)
    project = recipe.parent.parent
    link = tmp_path / "link.yaml"
    link.symlink_to(recipe)
    wanted = str(project / "data" / "rows.jsonl")
    for folder, path in ((Path("/"), recipe), (project, Path("recipes/recipe.yaml")), (tmp_path, link)):
        monkeypatch.chdir(folder)
        code, out, err = inside("check", path, "--json")
        assert code == 0, err
        assert json.loads(out)["recipe"]["data"]["path"] == wanted
    (project / "data" / "rows.jsonl").unlink()
    code, _, err = inside("check", recipe)
    assert code == 2
    assert "'../data/rows.jsonl'" in err
    assert wanted in err


def test_prompts_that_no_answer_could_be_trained_for_are_named_before_they_are_asked(
    copied: Path, data: Path, inside: Inside
) -> None:
    shutil.rmtree(copied / "run")
    recipe = copied / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("holdout: 3", "holdout: 3\n  max_length: 30"))
    code, _, err = inside("run", recipe)
    assert code == 2
    assert "prompts.jsonl:1: the prompt has" in err
    assert not (copied / "run").exists()
    recipe.write_text(text)
    (copied / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 2)
    config = copied / "teacher" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["chat_template"]
    config.write_text(json.dumps(settings))
    code, _, err = inside("run", recipe)
    assert code == 2
    assert "the tokenizer has no chat template" in err


def test_layers_that_teacher_or_student_lack_are_refused_before_any_work(
    data: Path, tiny_teacher: Path, tmp_path: Path, inside: Inside
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    recipe = tmp_path / "recipe.yaml"
    text = f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher, layers: LAYERS}}\n"
    text += "data: {path: rows.jsonl, holdout: 0}\nlosses: [{plugin: hidden_mse, layers: [[3, 1]]}]\n"
    text += "signals: {source: online}\noutput: out\n"
    for layers, said in (
        ("[0, 9]", "the teacher has no layer 9"),
        ("[0, 1]", "layer 3 is not one of the student's 0 … 2"),
    ):
        recipe.write_text(text.replace("LAYERS", layers))
        code, out, err = inside("check", recipe)
        assert code == 2
        assert said in out + err


def test_a_model_that_is_not_there_is_told_once_with_its_place(tmp_path: Path, inside: Inside) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    recipe = tmp_path / "recipe.yaml"
    text = "teacher: {plugin: transformers, model: teacherr}\nstudent: {from: teacher}\ndata: {path: rows.jsonl}\n"
    recipe.write_text(text + "losses: [{plugin: forward_kl, top_k: 8}]\noutput: out\n")
    code, out, err = inside("check", recipe, "--json")
    assert code == 2
    problems = json.loads(out)["error"]["problems"]
    assert [(problem["file"], problem["line"], problem["column"], problem["field"]) for problem in problems] == [
        (str(recipe), 1, 40, "teacher.model")
    ]
    assert problems[0]["message"].startswith("teacherr: no such folder, and not on the hub: ")
    assert err == ""


def test_a_pipe_is_no_file_of_rows_and_nobody_waits_for_it(tiny_teacher: Path, tmp_path: Path, inside: Inside) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    recipe = tmp_path / "recipe.yaml"
    text = f"teacher: {{plugin: transformers, model: {tiny_teacher}}}\nstudent: {{from: teacher}}\n"
    recipe.write_text(f"{text}data: {{path: rows.jsonl}}\nlosses: [{{plugin: forward_kl, top_k: 8}}]\noutput: out\n")
    code, out, _ = inside("check", recipe, "--json")
    (problem,) = json.loads(out)["error"]["problems"]
    assert (code, problem["line"], problem["field"]) == (2, 3, "data.path")
    assert "'rows.jsonl' is neither a file nor a folder" in problem["message"]
