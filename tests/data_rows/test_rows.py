"""Row formats: what each holds, what is refused and what is proposed instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data import Row, prompt_of, read_rows, reject_reason
from limbeck.errors import Problem

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def read(tmp_path: Path, *values: Any) -> tuple[list[Row], list[Problem]]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return read_rows([file])


@pytest.mark.parametrize(
    ("value", "format_"),
    [
        ({"prompt": "p"}, "prompt"),
        ({"prompt": [USER]}, "prompt"),
        ({"messages": [USER]}, "prompt"),
        ({"prompt": "p", "completion": "c", "finish_reason": "length"}, "completion"),
        ({"prompt": [USER], "completion": "c"}, "completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "completion"),
        ({"text": "t", "id": 7, "metadata": {"any": [1]}}, "text"),
        ({"messages": [{"role": "system", "content": ""}, USER, ANSWER], "finish_reason": "stop"}, "messages"),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]}, "messages"),
        ({"messages": [USER, ANSWER, {"role": "tool", "content": "", "tool_call_id": "1"}, ANSWER]}, "messages"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]}, "preference"),
    ],
)
def test_every_format_is_known_by_its_keys(tmp_path: Path, value: dict[str, Any], format_: str) -> None:
    rows, problems = read(tmp_path, value)
    assert problems == []
    assert [(row.format, row.line, row.value) for row in rows] == [(format_, 1, value)]


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"prompt": "p", "completions": "c"}, "completions", "did you mean completion?"),
        ({"instruction": "p", "output": "c"}, "instruction", "did you mean prompt?"),
        ({"conversations": []}, "conversations", "did you mean messages?"),
        ({"mesages": [USER, ANSWER]}, "mesages", "did you mean messages?"),
        ({"Prompt": "p"}, "Prompt", "did you mean prompt?"),
        ({"colour": "red"}, None, "no key of a known format among colour"),
        ({"text": "t", "prompt": "p"}, None, "text and prompt belong to different formats"),
        ({"messages": [USER], "completion": "c"}, None, "different formats"),
        ({"prompt": "p", "completion": "c", "chosen": "d"}, None, "different formats"),
        ({"completion": "c"}, "prompt", "is missing"),
        ({"prompt": "p", "chosen": "c"}, "rejected", "is missing"),
        ({"prompt": "p", "chosen": "c", "rejected": "c"}, "rejected", "the same"),
        ({"prompt": "p", "completion": "c", "finish_reason": "eos"}, "finish_reason", "stop, length"),
        ({"text": "t", "finish_reason": "stop"}, "finish_reason", "unknown key"),
        ({"prompt": 3, "completion": "c"}, "prompt", "must be a string, not a number"),
        ({"prompt": "", "completion": "c"}, "prompt", "empty prompt"),
        ({"prompt": "p", "completion": None}, "completion", "null"),
        ({"prompt": "p", "completion": " \n"}, "completion", "whitespace"),
        ({"prompt": "p", "completion": [ANSWER]}, "completion", "prompt is not"),
        ({"prompt": [USER], "completion": [USER, ANSWER]}, "completion", "one message of role assistant"),
        ({"prompt": [USER, ANSWER], "completion": "c"}, "prompt[1].role", "must not end with an answer"),
        ({"messages": []}, "messages", "empty list"),
        ({"messages": "hi"}, "messages", "not a string"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object, not a string"),
        ({"messages": [ANSWER]}, "messages", "no message of role user"),
        ({"messages": [{"role": "human", "content": "q"}]}, "messages[0].role", "did you mean user?"),
        ({"messages": [{"role": "asistant", "content": "q"}]}, "messages[0].role", "did you mean assistant?"),
        ({"messages": [{"content": "q"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", "not a list"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1].content", "empty"),
        ({"messages": [USER, {**ANSWER, "wieght": 0}]}, "messages[1].wieght", "did you mean weight?"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "messages[1].weight", "must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": "0"}]}, "messages[1].weight", "must be 0 or 1"),
        ({"messages": [{**USER, "weight": 0}, ANSWER]}, "messages[0].weight", "only on assistant messages"),
        ({"prompt": [USER], "completion": [{**ANSWER, "weight": 1}]}, "completion[0].weight", "answers only"),
        ({"messages": [USER, {**ANSWER, "tool_calls": []}]}, "messages[1].tool_calls", "unknown key"),
    ],
)
def test_a_wrong_field_is_told_with_its_name(tmp_path: Path, value: Any, field: str | None, words: str) -> None:
    rows, problems = read(tmp_path, {"text": "good"}, value)
    assert [row.line for row in rows] == [1]
    assert {problem.line for problem in problems} == {2}
    assert (field, True) in [(problem.field, words in str(problem)) for problem in problems]


def test_every_problem_of_a_row_is_told(tmp_path: Path) -> None:
    value = {"messages": [{"role": "usr", "content": 1}, {"role": "assistant", "content": "", "weight": 2}], "x": 1}
    _, problems = read(tmp_path, value)
    fields = {"x", "messages[0].role", "messages[0].content", "messages[1].content", "messages[1].weight"}
    assert {problem.field for problem in problems} == fields


def test_the_prompt_of_a_row_is_what_a_model_is_asked(tmp_path: Path) -> None:
    values = [
        {"prompt": "p", "completion": "c"},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        {"text": "t"},
    ]
    rows, _ = read(tmp_path, *values)
    assert [prompt_of(row) for row in rows] == ["p", [USER, ANSWER, USER], [USER, ANSWER, USER], [USER], "t"]


@pytest.mark.parametrize(("answer", "reason"), [("", "empty"), (" \n\t", "whitespace"), ("ok", None), (" a ", None)])
def test_an_answer_without_text_is_rejected(answer: str, reason: str | None) -> None:
    assert reject_reason(answer) == reason


def test_case_c45_reasons(data: Path) -> None:
    expected = json.loads((data / "C45" / "expect.json").read_text())["reasons"]
    rows, problems = read_rows([data / "C45" / "rows.jsonl"])
    assert [row.line for row in rows] == [3, 4]  # line 3 needs the tokenizer, and is refused by prepare
    told = {str(problem.line): problem.message for problem in problems}
    assert told.keys() == expected.keys() - {"3"}
    assert all(expected[line] in message for line, message in told.items())


def test_case_c46_line_3_names_both_weights(data: Path) -> None:
    rows, problems = read_rows([data / "C46" / "rows.jsonl"])
    assert [row.line for row in rows] == [1, 2, 4]
    assert [(p.line, p.field) for p in problems] == [(3, "messages[0].weight"), (3, "messages[1].weight")]
