"""Texts that a run shows."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.runs.samples import MOST_CHARACTERS, of_row, sample


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": "Who?", "completion": "I."}, ("Who?", "I.")),
        ({"text": "All of it."}, ("", "All of it.")),
        ({"prompt": "Who?", "chosen": "I.", "rejected": "You."}, ("Who?", "I.")),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Who?"},
                    {"role": "assistant", "content": "I."},
                ]
            },
            ("Who?", "I."),
        ),
        (
            {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "I."}]},
            ("Who?", "I."),
        ),
        ({"messages": [{"role": "assistant", "content": "I."}]}, ("", "I.")),
        ({"messages": [{"role": "assistant", "content": None}]}, None),
        ({"prompt": "Who?"}, None),
        ({"messages": ["Who?", "I."]}, None),  # of a plugin: what is wrong with the row is told where rows are read
        ({"prompt": ["Who?"], "completion": ["I."]}, None),
        ({}, None),
    ],
)
def test_texts_of_a_row(row: dict[str, Any], texts: tuple[str, str] | None) -> None:
    assert of_row(row) == texts


def test_long_texts_are_cut_where_they_say_least() -> None:
    shown = sample("teacher", "a" * 5000 + "the question", "the answer" + "b" * 5000)
    assert shown.prompt.startswith("…a")
    assert shown.prompt.endswith("the question")
    assert shown.text.startswith("the answer")
    assert shown.text.endswith("b…")
    assert {len(shown.prompt), len(shown.text)} == {MOST_CHARACTERS}


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert sample("student", "\ud800", "x\udfff").text == "x?"
