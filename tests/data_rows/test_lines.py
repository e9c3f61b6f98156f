"""What may be wrong with a line, and where it is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.data import read_rows
from limbeck.errors import Problem

GOOD = b'{"prompt": "p", "completion": "c"}'


def problems_of(tmp_path: Path, content: bytes) -> tuple[int, list[Problem]]:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    rows, problems = read_rows([file])
    return len(rows), problems


@pytest.mark.parametrize(
    ("line", "column", "words"),
    [
        (b'{"prompt": "p" "completion": "c"}', 15, "comma is missing before"),
        (b'{"prompt": "p", completion: "c"}', 17, "not JSON"),
        (b'{"prompt": "p", "completion": "c"', 34, "ends before"),
        (b'{"prompt": "p", "completion": NaN}', 31, "NaN is not JSON"),
        (b'{"prompt": "NaN", "completion": -Infinity}', 33, "-Infinity is not JSON"),
        (b'{"prompt": "p", "prompt": "q", "completion": "c"}', 17, "'prompt' appears twice"),
        (b'{"prompt": "p\xff", "completion": "c"}', 14, "0xff is not UTF-8"),
        (b'{"prompt": "p\x00", "completion": "c"}', 14, "not JSON"),
        (b'["prompt", "p"]', None, "not a list"),
        (b'"prompt"', None, "not a string"),
        (b"null", None, "not null"),
        (b"7" * 5000, None, "not JSON"),
        (b"[" * 100_000, None, ""),
        (b"{}", None, "empty"),
    ],
)
def test_a_bad_line_is_told_with_its_place(tmp_path: Path, line: bytes, column: int | None, words: str) -> None:
    good, problems = problems_of(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    assert good == 2
    assert len(problems) == 1
    problem = problems[0]
    assert (problem.file, problem.line) == (str(tmp_path / "rows.jsonl"), 2)
    if column is not None:
        assert problem.column == column
    assert words in problem.message


def test_several_missing_commas_and_a_wrong_key_are_told_in_one_go(tmp_path: Path) -> None:
    _, problems = problems_of(tmp_path, b'{"prompt": "p" "completion": "c" "weigth": 1}')
    assert [problem.column for problem in problems] == [15, 33, None]
    assert problems[2].field == "weigth"


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + GOOD)
    rows, problems = read_rows([file])
    assert [row.line for row in rows] == [1, 4]
    assert problems == []


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    good, problems = problems_of(tmp_path, '{"prompt": "a\u2028b\u0085", "completion": "c"}\n'.encode())
    assert (good, problems) == (1, [])


def test_a_column_counts_characters_not_bytes(tmp_path: Path) -> None:
    _, problems = problems_of(tmp_path, '{"prompt": "éé" "completion": "c"}'.encode())
    assert problems[0].column == 16


def test_half_of_a_surrogate_pair_is_refused_where_it_stands(tmp_path: Path) -> None:
    _, problems = problems_of(tmp_path, b'{"prompt": "p", "completion": "a\\ud83d"}')
    assert problems[0].field == "completion"
    assert "U+D83D" in problems[0].message


def test_a_file_without_rows_and_a_missing_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    rows, problems = read_rows([tmp_path / "empty.jsonl", tmp_path / "gone.jsonl"])
    assert rows == []
    assert [problem.file for problem in problems] == [str(tmp_path / name) for name in ("empty.jsonl", "gone.jsonl")]
    assert "no rows" in problems[0].message
    assert str((tmp_path / "gone.jsonl").absolute()) in str(problems[1])


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    for name, text in (("b", "2"), ("a", "1")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    rows, problems = read_rows([tmp_path])
    assert [row.value["text"] for row in rows] == ["1", "2"]
    assert problems == []


def test_case_c52_both_mistakes_of_the_documentation_are_told_in_one_go(data: Path) -> None:
    file = data / "C52" / "rows.jsonl"
    rows, problems = read_rows([file])
    assert rows == []
    comma, version = problems
    assert (comma.line, comma.column) == (1, file.read_text().index(' "content": [ { "text": "because"') + 1)
    assert "comma" in comma.message
    assert (version.line, version.field) == (1, "schemaVersion")
    assert version.hint == "did you mean bedrock-conversation-2024?"


def test_case_c52_mended_is_a_row_of_messages(data: Path, tmp_path: Path) -> None:
    text = (data / "C52" / "rows.jsonl").read_text()
    file = tmp_path / "rows.jsonl"
    file.write_text(
        text.replace('"assistant" "content"', '"assistant", "content"').replace("conversion", "conversation")
    )
    rows, problems = read_rows([file])
    assert problems == []
    assert rows[0].value["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "why is it so"},
        {"role": "assistant", "content": "because"},
    ]


def test_faults_inside_a_bedrock_row_are_named(tmp_path: Path) -> None:
    row = {
        "schemaVersion": "bedrock-conversation-2024",
        "sistem": [{"text": "s"}],
        "messages": [{"role": "user", "content": "plain"}, {"role": "assistant", "content": [{"image": "x"}]}],
    }
    _, problems = problems_of(tmp_path, json.dumps(row).encode())
    assert [problem.field for problem in problems] == ["sistem", "messages[0].content", "messages[1].content[0]"]
    assert problems[0].hint == "did you mean system?"
