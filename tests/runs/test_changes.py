"""What is said of values that differ."""

from __future__ import annotations

from limbeck.runs.changes import ABSENT, differences


def test_of_texts_of_many_lines_the_first_other_line_is_told() -> None:
    before, now = "teacher: a\noutput: run\n", "teacher: a\noutput: other\n"
    assert differences({"recipe": before}, {"recipe": now}) == [("recipe", "output: run", "output: other")]
    assert differences(before, f"{before}more: 1") == [("", ABSENT, "more: 1")]
    assert differences("a\n", "a") == [("", "a\n", "a")]
    assert differences([1, {"x": 2}], [1, {"x": 3}]) == [("[1].x", "2", "3")]
