"""Lines between a server and the process of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting.channel import (
    LARGEST,
    NONSENSE,
    Checked,
    Decoder,
    Ended,
    Start,
    encode,
    error_fields,
    error_of,
    problem_fields,
)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_arrive_however_their_bytes_are_cut(size: int) -> None:
    messages = [{"tick": 1}, {"stop": "pause"}, {"text": "Zeile\nUmbruch\u2028 ü \ud800", "none": None}]
    raw = b"".join(map(encode, messages))
    decoder = Decoder()
    found = [message for start in range(0, len(raw), size) for message in decoder.feed(raw[start : start + size])]
    assert found == messages


def test_a_message_is_one_line() -> None:
    assert encode({"text": "a\nb\r\u2028"}).count(b"\n") == 1


@pytest.mark.parametrize("line", [b"[1]\n", b"null\n", b"{\n", b"\xff\n"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        Decoder().feed(line)


def test_a_line_without_end_is_refused_on_both_sides() -> None:
    with pytest.raises(ValueError, match="allowed"):
        encode({"text": "x" * LARGEST})
    with pytest.raises(ValueError, match="more than"):
        Decoder().feed(b"x" * (LARGEST + 1))


def test_an_error_comes_as_it_was_sent() -> None:
    problem = Problem("was 3, allowed is 2", file="recipe", line=3, column=1, field="losses[0]", hint="lower it")
    sent = LimbeckError(Reason.RECIPE_INVALID, "Two faults.", [problem, Problem("no place")])
    (message,) = Decoder().feed(encode({"error": error_fields(sent)}))
    got = error_of(message["error"])
    assert (got.reason, got.message, got.problems) == (sent.reason, sent.message, sent.problems)


def test_half_a_character_as_names_of_files_may_have_it_comes_as_its_code() -> None:
    sent = LimbeckError(
        Reason.DATA_INVALID, "a\udcff", [Problem("b\udcff", file="c\udcff", field="d\udcff", hint="e\udcff")]
    )
    (message,) = Decoder().feed(encode({"error": error_fields(sent)}))
    got = error_of(message["error"])
    (problem,) = got.problems
    texts = (got.message, problem.message, problem.file, problem.field, problem.hint)
    assert texts == tuple(f"{sign}\\udcff" for sign in "abcde")


PROBLEM = problem_fields(Problem("bad"))
ERROR = error_fields(LimbeckError(Reason.DATA_INVALID))
FOUND: dict[str, Any] = {"error": None, "warnings": [], "resolved": {}, "facts": {}}


def test_what_was_found_comes_as_it_was_sent() -> None:
    found = Checked(None, [Problem("slow", line=3)], {"output": "a"}, {"rows": 3})
    (message,) = Decoder().feed(encode(found.message()))
    assert Checked.of(message) == found
    assert Ended.of({"ended": "succeeded", "signal": None, "error": None}) == Ended("succeeded", None)


@pytest.mark.parametrize(
    "changed",
    [
        *({"error": one} for one in (3, "bad", [], {}, ERROR | {"reason": "ODD"}, ERROR | {"message": None})),
        *({"error": ERROR | {"problems": one}} for one in (None, [3], [{"text": "bad"}], [PROBLEM | {"hint": 3}])),
        *({"warnings": one} for one in (None, [None], [PROBLEM | {"message": 7}], [PROBLEM | {"line": -1}])),
        *({name: one} for name in ("resolved", "facts") for one in (None, [], "bad")),
        {"error": ERROR | {"problems": [PROBLEM | {"column": "x"}]}},
    ],
)
def test_what_cannot_have_been_found_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(NONSENSE):
        Checked.of({"checked": FOUND | changed})
    if "error" in changed:
        with pytest.raises(NONSENSE):
            Ended.of({"ended": "failed", "signal": None} | changed)


@pytest.mark.parametrize(
    "message", [{"checked": None}, {"checked": {}}, {"ended": "odd", "error": None}, {"ended": []}]
)
def test_what_is_no_last_word_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(NONSENSE):
        (Checked if "checked" in message else Ended).of(message)


def test_a_start_comes_as_it_was_sent() -> None:
    start = Start("run", Path("/w/.run-1.yaml"), Path("/w"), (Path("/models"),), resume=True)
    (message,) = Decoder().feed(encode(start.message()))
    assert Start.of(message) == start
