"""What a paid teacher took, over attempts: written down, told once for a state, and what the rest will take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from limbeck.interfaces import TextPrompt
from limbeck.runs.events import EventLog, read_events
from limbeck.runs.spending import Spending
from limbeck.testing.text_teachers import ScriptedTextTeacher, answers

ONE = (1.0 * 10 + 2.0 * 5) / 1e6  # what an answer of the scripted teacher costs


def asked(teacher: ScriptedTextTeacher, count: int) -> None:
    asyncio.run(answers(teacher, [TextPrompt(number, "x") for number in range(count)]))


def test_attempts_add_up_and_the_rest_is_expected_to_cost_as_much(tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    with EventLog(tmp_path / "events.jsonl", "r") as log:
        first = ScriptedTextTeacher("a")
        kept: list[tuple[int, int]] = []
        spending = Spending(log, first, file, kept)
        asked(first, 3)
        kept += [(10, 5)] * 3
        spending.tell(left=7)
        spending.tell(left=7)  # nothing new
        spending.tell(left=6)
        second = ScriptedTextTeacher("a")
        asked(second, 1)  # for somebody else
        spending = Spending(log, second, file, kept)
        spending.tell(left=6)
        asked(second, 2)
        kept += [(10, 5)] * 2
        spending.tell(left=0)
    told = [event.metrics.values for event in read_events(tmp_path / "events.jsonl")]
    assert [values["teacher.calls"] for values in told] == [3, 3, 3, 5]
    expected = [values.get("teacher.expected.USD") for values in told]
    assert expected[:3] == [pytest.approx(10 * ONE), pytest.approx(9 * ONE), pytest.approx(9 * ONE)]
    assert not expected[3]
    usage = json.loads(file.read_text())
    assert usage["usage"]["calls"] == 5
    assert usage["usage"]["cost"] == pytest.approx(5 * ONE)
    assert (usage["teacher"], usage["model"], usage["currency"]) == ("scripted", "script-1", "USD")
    assert spending.text == "5 calls, 50 tokens read, 25 written, $0.00010"


def test_answers_that_an_attempt_kept_and_did_not_count_are_counted_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    kept: list[tuple[int, int]] = []
    with EventLog(tmp_path / "events.jsonl", "r") as log:
        first = ScriptedTextTeacher("a")
        spending = Spending(log, first, file, kept)
        asked(first, 1)
        kept.append((10, 5))
        spending.tell(left=3)
        kept += [(10, 5), (10, 5)]  # and then it was killed
        second = ScriptedTextTeacher("a")
        spending = Spending(log, second, file, kept)
        asked(second, 1)
        kept.append((10, 5))
        spending.tell(left=0)
        assert spending.text == "4 calls, 40 tokens read, 20 written, $0.000080"
        assert Spending(log, ScriptedTextTeacher("a"), file, kept).text == spending.text
        unpriced = Spending(log, ScriptedTextTeacher("a", price=None), tmp_path / "other.json", kept)
        assert unpriced.text == "4 calls, 40 tokens read, 20 written"


def test_calls_under_way_make_no_answer_cheaper(tmp_path: Path) -> None:
    class Busy(ScriptedTextTeacher):
        def usage(self) -> Mapping[str, float]:
            return {**super().usage(), "calls": super().usage()["calls"] + 16}

    kept: list[tuple[int, int]] = []
    with EventLog(tmp_path / "events.jsonl", "r") as log:
        teacher = Busy("a")
        spending = Spending(log, teacher, tmp_path / "usage.json", kept)
        asked(teacher, 2)
        kept += [(10, 5)] * 2
        spending.tell(left=10)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event.metrics.values["teacher.expected.USD"] == pytest.approx(12 * ONE)
