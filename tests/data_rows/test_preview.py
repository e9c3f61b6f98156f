"""`limbeck preview`: the trained tokens are marked, bad rows told, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from limbeck.cli.main import run
from limbeck.cli.preview import command
from limbeck.errors import LimbeckError, Reason


def preview(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=True)


def test_trained_tokens_stand_in_brackets_and_bad_rows_are_listed(data: Path) -> None:
    file = data / "C46" / "rows.jsonl"
    done = preview(file, "--tokenizer", data / "tok_a")
    assert done.exit_code == 2
    assert "model\nbad<end_of_turn>\n" in done.output
    assert "model\n⟦good<end_of_turn>⟧" in done.output
    assert "model\n⟦kept<end_of_turn>⟧" in done.output
    assert "2 of 4 rows are valid" in done.output
    assert f"{file}:3: messages[1].weight:" in done.output
    assert f"{file}:4: messages: nothing to train" in done.output
    assert "\x1b[" not in done.output


def test_case_c52_prints_both_mistakes_and_the_count(data: Path) -> None:
    done = preview(data / "C52" / "rows.jsonl", "--tokenizer", data / "tok_a")
    assert done.exit_code == 2
    assert "0 of 1 row is valid" in done.output
    assert "a comma is missing" in done.output
    assert "did you mean bedrock-conversation-2024?" in done.output


def test_json_holds_ids_masks_problems_and_nothing_else_is_printed(data: Path) -> None:
    done = preview(data / "C45" / "rows.jsonl", "--tokenizer", data / "tok_a", "--json")
    assert done.exit_code == 2
    value = json.loads(done.stdout)
    (shown,) = value["sequences"]
    assert shown["ids"][0] == 2
    assert shown["trained_text"] == ["x<eos>"]
    assert shown["text"] == "<bos>p4⟦x<eos>⟧"
    assert [problem["line"] for problem in value["problems"]] == [1, 2, 3, 5, 6]
    assert value["figures"]["trained_tokens"] == 2


def test_the_command_line_gives_json_alone_on_stdout(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["preview", str(data / "C39" / "rows.jsonl"), "--tokenizer", str(data / "tok_b"), "--json"]
    assert run(arguments) == 0
    assert len(json.loads(capfd.readouterr().out)["sequences"]) == 4


def test_good_rows_end_with_0_and_as_many_are_shown_as_asked(data: Path) -> None:
    done = preview(data / "C39" / "rows.jsonl", "--tokenizer", data / "tok_b", "--rows", 2)
    assert done.exit_code == 0
    assert "⟦memory<eos>⟧" in done.output
    assert done.output.count("── ") == 2
    assert "4 of 4 rows are valid" in done.output


def test_a_spelled_control_token_and_terminal_codes_are_shown_harmless(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a<eos>\x1b[31m", "completion": "b"}))
    done = preview(file, "--tokenizer", data / "tok_a")
    assert "<bos>a\\<eos>\\x1b[31m⟦b<eos>⟧" in done.output


def test_another_template_and_a_shorter_limit_can_be_tried(data: Path) -> None:
    template = data / "tok_a" / "templates" / "rewrites_history.jinja"
    file = data / "C16" / "think_two_turns.jsonl"
    done = preview(file, "--tokenizer", data / "tok_a", "--chat-template", template)
    assert "⟦<think>t1</think>a1<end_of_turn>⟧" in done.output
    assert "split into 2 sequences" in done.output
    done = preview(file, "--tokenizer", data / "tok_a", "--max-length", 8)
    assert done.exit_code == 2
    assert "nothing left to train" in done.output


def test_a_file_of_rows_needs_a_tokenizer(data: Path) -> None:
    done = preview(data / "C39" / "rows.jsonl")
    assert isinstance(done.exception, LimbeckError)
    assert done.exception.reason is Reason.DATA_INVALID
    assert "--tokenizer" in str(done.exception)


@pytest.fixture
def recipe(data: Path, tiny_teacher: Path, tiny_student: Path, tmp_path: Path) -> Path:
    text = (data / "C28" / "recipe.yaml").read_text()
    for name, path in (("MODEL_DIR", tiny_teacher), ("STUDENT_DIR", tiny_student), ("OUT", tmp_path / "out")):
        text = text.replace(name, str(path))
    (tmp_path / "rows.jsonl").write_bytes((data / "C28" / "rows.jsonl").read_bytes())
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def test_case_c28_from_its_recipe(recipe: Path) -> None:
    done = preview(recipe)
    assert done.exit_code == 2
    rows = recipe.parent / "rows.jsonl"
    assert f"{rows}:1: completion: nothing left to train: the prompt alone has 90 tokens" in done.output
    assert f"{rows}:4: completion: nothing left to train: the prompt alone has 400 tokens" in done.output
    assert "1 row cut (6 trained tokens lost)" in done.output
    recipe.write_text(recipe.read_text().replace("max_length: 64", "max_length: 64, on_bad_row: quarantine"))
    assert preview(recipe).exit_code == 0


def test_rows_of_a_generator_are_read_from_the_run(recipe: Path) -> None:
    text = recipe.read_text().replace("path: rows.jsonl,", "generator: {plugin: prompts, path: rows.jsonl},")
    recipe.write_text(text)
    done = preview(recipe)
    assert isinstance(done.exception, LimbeckError)
    assert "limbeck run" in str(done.exception)
    rows = recipe.parent / "out" / "rows" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    row = {"prompt": "p", "completion": "made", "finish_reason": "length", "lineage": {"position": 0}}
    rows.write_text(json.dumps(row) + "\n")
    done = preview(recipe)
    assert done.exit_code == 0, done.output
    assert "⟦made⟧" in done.output
