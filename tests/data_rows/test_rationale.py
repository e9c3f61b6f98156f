"""data.rationale: which tokens of an answer are its rationale, what weighs how much, what is left without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.cli.preview import command
from limbeck.data import Prepared, Row, Tokenizer, prepare, read_sequences, write_sequences
from limbeck.data.rationale import spans, without
from limbeck.data.show import bracketed, parts, trained_texts
from limbeck.errors import LimbeckError, Reason
from limbeck.recipe import RationaleSpec

Load = Callable[..., Tokenizer]
Spec = Callable[..., Any]


def completion(answer: str, **more: Any) -> Row:
    return Row("rows.jsonl", 1, {"prompt": "2 + 2? ", "completion": answer, **more}, "completion")


def chat(*answers: str, **last: Any) -> Row:
    messages: list[dict[str, Any]] = []
    for answer in answers:
        messages += [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    messages[-1] |= last
    return Row("rows.jsonl", 1, {"messages": messages}, "messages")


def prepared(row: Row, tokenizer: Tokenizer, spec: Spec, **rationale: Any) -> Prepared:
    return prepare([row], [], tokenizer, spec(rationale={"tag": "think", **rationale}))


def by_weight(tokenizer: Tokenizer, found: Prepared) -> list[tuple[float, str]]:
    (sequence,) = found.train
    return [(part.weight, part.text) for part in parts(tokenizer, sequence) if part.trained and not part.control]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no tags", []),
        ("<think>a</think>b", ["<think>a</think>"]),
        ("x<think>a</think>y<think>b</think>z", ["<think>a</think>", "<think>b</think>"]),
        ("x<think>never closed", ["<think>never closed"]),
        ("<think>a</think>b<think>cut", ["<think>a</think>", "<think>cut"]),
        ("begun by the prompt</think>b", ["begun by the prompt</think>"]),
        ("<think>a<think>b</think>c", ["<think>a<think>b</think>"]),
        ("<think>a</think>b</think>c", ["<think>a</think>"]),
        ("<thinking>no</thinking>", []),
        ("<think></think>", ["<think></think>"]),
    ],
)
def test_where_the_rationale_is(answer: str, expected: list[str]) -> None:
    assert [answer[low:high] for low, high in spans(answer, "think")] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<think>a</think>\n\nfour", "four"),
        ("It is <think>a</think> four", "It is four"),
        ("It is<think>a</think> four", "It is four"),
        ("It is <think>a</think>four", "It is four"),
        ("four <think>cut", "four"),
        ("four\n<think>a</think>\n", "four"),
        ("<think>a</think> <think>b</think> four", "four"),
        ("  four  ", "  four  "),
    ],
)
def test_what_is_left_without_it(answer: str, expected: str) -> None:
    assert without(answer, "think") == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "word", " ", "\n", "é"]), max_size=12))
def test_nothing_of_it_is_left_and_no_other_word_is_lost(found: list[str]) -> None:
    answer = "".join(found)
    places = spans(answer, "think")
    outside = "".join(char for i, char in enumerate(answer) if not any(low <= i < high for low, high in places))
    assert "".join(without(answer, "think").split()) == "".join(outside.split())
    assert all(low < high for low, high in places)
    assert all(first[1] <= second[0] for first, second in pairwise(places))


@pytest.mark.parametrize("name", ["tok_a", "tok_b"])
def test_a_weight_falls_on_tags_and_text_alone(tok: Load, spec: Spec, name: str) -> None:
    tokenizer = tok(name)
    found = prepared(completion("<think>zwölf</think> four"), tokenizer, spec, weight=0.25)
    assert by_weight(tokenizer, found) == [(0.25, "<think>zwölf</think>"), (1.0, " four")]
    (sequence,) = found.train
    assert sequence.weights is not None
    assert sequence.weights.dtype == np.float32
    assert (sequence.weights[~sequence.trained] == 1).all()
    assert found.figures["rationale_tokens"] == int((sequence.weights == 0.25).sum()) > 0
    assert found.figures["rows_with_rationale"] == 1


def test_a_token_across_the_border_goes_where_its_first_byte_is(data: Path, tmp_path: Path, spec: Spec) -> None:
    """One that begins before the tag is not the rationale's; one that begins with the tag's last byte is."""
    folder = shutil.copytree(data / "tok_b", tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    for left, right in (("Ġ", "<"), (">", ">")):
        content["model"]["vocab"][left + right] = len(content["model"]["vocab"]) + 10
        content["model"]["merges"].append([left, right])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(folder)
    found = prepared(completion("a <think>b</think>> c"), tokenizer, spec, weight=0.5)
    assert by_weight(tokenizer, found) == [(1.0, "a <"), (0.5, "think>b</think>>"), (1.0, " c")]


def test_an_answer_that_never_closes_it_is_rationale_to_its_end_token(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a")
    (sequence,) = prepared(completion("four <think>hm"), tokenizer, spec, weight=0.5).train
    assert sequence.weights is not None
    assert sequence.weights[-1] == 0.5
    (cut,) = prepared(completion("four <think>hm", finish_reason="length"), tokenizer, spec, weight=0.5).train
    assert bracketed(parts(tokenizer, cut)).endswith("⟦four ⟧⟦0.5×<think>hm⟧")


def test_answers_of_a_conversation_are_weighed_each_by_itself(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a", "plain")
    row = chat("<think>a</think>b", "c <think>d</think>")
    found = prepared(row, tokenizer, spec, weight=2.0)
    assert by_weight(tokenizer, found) == [
        (2.0, "<think>a</think>"), (1.0, "b"), (1.0, "c "), (2.0, "<think>d</think>")
    ]  # fmt: skip
    (sequence,) = found.train
    ends = [i for i in np.flatnonzero(sequence.trained) if tokenizer.is_control(int(sequence.ids[i]))]
    assert sequence.weights is not None
    assert len(ends) == 2
    assert (sequence.weights[ends] == 1).all()


def test_a_spelled_control_token_shifts_nothing(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a", "plain")
    for row in (chat("<eos>é<think><bos>a</think>b<eos>"), completion("<eos>é<think><bos>a</think>b<eos>")):
        texts = by_weight(tokenizer, prepared(row, tokenizer, spec, weight=0.5))
        assert texts == [(1.0, "\\<eos>é"), (0.5, "<think>\\<bos>a</think>"), (1.0, "b\\<eos>")]


def test_weight_zero_keeps_it_as_context_alone(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a")
    found = prepared(completion("<think>a</think>four"), tokenizer, spec, weight=0.0)
    (sequence,) = found.train
    assert trained_texts(tokenizer, sequence)[0].startswith("four")
    assert sequence.first_row == len("2 + 2? <think>a</think>") - 1 + (tokenizer.bos_id is not None)
    assert found.figures["trained_tokens"] == len(sequence.kept) == 5
    with pytest.raises(LimbeckError, match="all of the answer is its rationale, whose weight is 0"):
        prepared(completion("<think>a</think>"), tokenizer, spec, weight=0.0)
    rules = spec(rationale={"tag": "think", "weight": 0.0}, max_length=20)
    with pytest.raises(LimbeckError, match="prompt and rationale, whose weight is 0, fill max_length 20"):
        prepare([completion("<think>a</think>four")], [], tokenizer, rules)


def test_dropped_it_is_as_if_it_had_not_been_written(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a", "plain")
    for row, plain in (
        (completion("<think>a</think>\nfour"), completion("four")),
        (chat("<think>a</think>b", "<think>c</think> d"), chat("b", "d")),
        (completion("four <think>cut", finish_reason="length"), completion("four", finish_reason="length")),
    ):
        found = prepared(row, tokenizer, spec, keep=False)
        (one,), (other,) = found.train, prepare([plain], [], tokenizer, spec()).train
        assert one.ids.tolist() == other.ids.tolist()
        assert one.trained.tolist() == other.trained.tolist()
        assert one.weights is None
        assert (found.figures["rows_with_rationale"], found.figures["rationale_tokens"]) == (1, 0)


def test_an_answer_that_is_context_keeps_what_it_says(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a", "plain")
    row = chat("<think>a</think>b", "<think>c</think>d")
    row.value["messages"][1]["weight"] = 0
    (dropped,) = prepared(row, tokenizer, spec, keep=False).train
    text = bracketed(parts(tokenizer, dropped))
    assert "<think>a</think>b" in text
    assert "⟦d<end_of_turn>⟧" in text
    (weighted,) = prepared(row, tokenizer, spec, weight=0.5).train
    assert "model\n<think>a</think>b" in bracketed(parts(tokenizer, weighted))


def test_chosen_and_rejected_are_without_it_too(tok: Load, spec: Spec) -> None:
    value = {"prompt": "q ", "chosen": "<think>a</think>yes", "rejected": "<think>b</think>no"}
    found = prepared(Row("rows.jsonl", 1, value, "preference"), tok("tok_a"), spec, keep=False)
    assert [trained_texts(tok("tok_a"), sequence)[0][:2] for sequence in found.train] == ["ye", "no"]


def test_an_answer_that_is_nothing_else_is_a_bad_row(tok: Load, spec: Spec) -> None:
    tokenizer = tok("tok_a", "plain")
    for row, field in (
        (completion("<think>hm"), "completion"),
        (chat("b", "<think>c</think> "), "messages[3].content"),
    ):
        with pytest.raises(LimbeckError) as caught:
            prepared(row, tokenizer, spec, keep=False)
        (problem,) = caught.value.problems
        assert caught.value.reason is Reason.DATA_INVALID
        assert (problem.message, problem.field, problem.line) == ("empty without its rationale", field, 1)


def test_without_a_rationale_in_the_rows_nothing_changes(tok: Load, spec: Spec) -> None:
    rows = [completion("four"), Row("rows.jsonl", 2, {"text": "<think>a text is no answer</think>b"}, "text")]
    (plain, weighted) = (prepare(rows, [], tok("tok_a"), rules) for rules in (
        spec(), spec(rationale={"tag": "think", "weight": 0.5})
    ))  # fmt: skip
    assert all(sequence.weights is None for sequence in weighted.train)
    assert [s.ids.tolist() for s in plain.train] == [s.ids.tolist() for s in weighted.train]
    assert weighted.figures == {**plain.figures, "rows_with_rationale": 0.0, "rationale_tokens": 0.0}


def test_weights_are_stored_and_files_without_stay_as_they_were(tok: Load, spec: Spec, tmp_path: Path) -> None:
    rows = [completion("<think>a</think>four"), completion("four")]
    found = prepare(rows, [], tok("tok_a"), spec(rationale={"tag": "think", "weight": 0.25}))
    write_sequences(tmp_path / "weighted.arrow", found.train)
    weighted, plain = read_sequences(tmp_path / "weighted.arrow")
    assert weighted.weights is not None
    assert found.train[0].weights is not None
    assert weighted.weights.tolist() == found.train[0].weights.tolist()
    assert plain.weights is None
    write_sequences(tmp_path / "plain.arrow", found.train[1:])
    assert b"limbeck.sequences/1" in (tmp_path / "plain.arrow").read_bytes()
    assert b"weights" not in (tmp_path / "plain.arrow").read_bytes()


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"keep": False, "weight": 0.5}, "no weight"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"weight": float("inf")}, "finite"),
        ({"tag": "<think>"}, "pattern"),
    ],
)
def test_what_cannot_be_is_refused(given_: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        RationaleSpec(**{"tag": "think", **given_})


def test_preview_shows_what_weighs_how_much(data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q ", "completion": "<think>a</think>b"}\n' * 2)
    (tmp_path / "recipe.yaml").write_text(
        f"student: {{config: {{model_type: llama}}, tokenizer: {data / 'tok_a'}}}\n"
        "data: {path: rows.jsonl, holdout: 0, rationale: {tag: think, weight: 0.3}}\n"
        "losses: [{plugin: cross_entropy}]\noutput: run\n"
    )
    done = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")])
    assert "q ⟦0.3×<think>a</think>⟧⟦b<eos>⟧" in done.output
    told = json.loads(CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--json"]).output)
    assert told["figures"]["rows_with_rationale"] == 2
    assert sorted(set(told["sequences"][0]["weights"])) == [pytest.approx(0.3), 1.0]
