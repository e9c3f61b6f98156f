"""Rows to sequences: the cases C16, C28, C39, C43, C45, C46, truncation, pairs, rows set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import Prepared, Row, Tokenizer, prepare, prompt_of, read_rows
from limbeck.data.show import trained_texts
from limbeck.errors import LimbeckError, Reason

Load = Callable[..., Tokenizer]
Spec = Callable[..., Any]
Chat = Callable[..., Row]


def completion(prompt: str, answer: str, line: int = 1, **more: Any) -> Row:
    return Row("rows.jsonl", line, {"prompt": prompt, "completion": answer, **more}, "completion")


def expectation(data: Path, case: str) -> Any:
    return json.loads((data / case / "expect.json").read_text())


def prepared_file(file: Path, tokenizer: Tokenizer, spec: Any) -> Prepared:
    return prepare(*read_rows([file]), tokenizer, spec)


def trained_bytes(tokenizer: Tokenizer, row: Row, sequence: Any) -> bytes:
    raw = (row.value["prompt"] + row.value["completion"]).encode()
    return b"".join(raw[low:high] for low, high in sequence.offsets[sequence.trained])


def test_case_c16_plain_trains_both_answers(tok: Load, spec: Spec, data: Path) -> None:
    tokenizer = tok("tok_a", "plain")
    (sequence,) = prepared_file(data / "C16" / "plain_two_turns.jsonl", tokenizer, spec()).train
    assert trained_texts(tokenizer, sequence) == expectation(data, "C16")["plain"]["trained_text"]


def test_case_c16_a_rewritten_answer_is_trained_in_its_own_sequence(tok: Load, spec: Spec, data: Path) -> None:
    tokenizer = tok("tok_a", "rewrites_history")
    prepared = prepared_file(data / "C16" / "think_two_turns.jsonl", tokenizer, spec())
    texts = [trained_texts(tokenizer, sequence) for sequence in prepared.train]
    assert texts == [["<think>t1</think>a1<end_of_turn>"], ["<think>t2</think>a2<end_of_turn>"]]
    whole = tokenizer.hf.decode(prepared.train[1].ids)
    assert "model\na1<end_of_turn>" in whole  # the first answer as the model sees it later
    assert "t1" not in whole
    assert prepared.figures["split_rows"] == 1
    assert [note.line for note in prepared.notes] == [1]


def test_case_c28_names_the_rows_that_the_limit_empties(tok: Load, spec: Spec, data: Path) -> None:
    file = data / "C28" / "rows.jsonl"
    expected = expectation(data, "C28")["lines_with_nothing_left_to_train"]
    with pytest.raises(LimbeckError) as caught:
        prepared_file(file, tok(bos="never"), spec(max_length=64))
    assert caught.value.reason is Reason.DATA_INVALID
    assert caught.value.message == "2 of 4 rows are valid."
    assert [problem.line for problem in caught.value.problems] == expected
    assert [n for p in caught.value.problems for n in (90, 400) if f" {n} tokens" in p.message] == [90, 400]


@pytest.mark.parametrize("bos", ["never", "always"])
def test_case_c28_set_aside_and_line_3_counted_as_cut(tok: Load, spec: Spec, data: Path, bos: str) -> None:
    tokenizer = tok(bos=bos)
    prepared = prepared_file(data / "C28" / "rows.jsonl", tokenizer, spec(max_length=64, on_bad_row="quarantine"))
    assert [problem.line for problem in prepared.bad] == [1, 4]
    assert [sequence.line for sequence in prepared.train] == [2, 3]
    figures = prepared.figures
    assert (figures["truncated"], figures["lost_bytes"], figures["quarantined"]) == (1, 5, 2)
    cut = prepared.train[1]
    assert len(cut.ids) == 64 + (bos == "always")
    assert trained_texts(tokenizer, cut) == [" a"]  # and no end token
    assert [(note.line, "5 bytes" in note.message) for note in prepared.notes] == [(3, True)]


def test_only_rows_without_a_target_are_refused(tok: Load, spec: Spec) -> None:
    rows = [completion("p" * 70, "a", line) for line in (1, 2)]
    for rule, reason in (("error", Reason.DATA_INVALID), ("quarantine", Reason.NOTHING_TO_TRAIN)):
        with pytest.raises(LimbeckError) as caught:
            prepare(rows, [], tok(), spec(max_length=64, on_bad_row=rule))
        assert caught.value.reason is reason
        assert len(caught.value.problems) == 2


def test_case_c39_prompts_and_completions_never_share_a_token(tok: Load, spec: Spec, data: Path) -> None:
    tokenizer = tok("tok_b")
    rows, problems = read_rows([data / "C39" / "rows.jsonl"])
    for row, sequence in zip(rows, prepare(rows, problems, tokenizer, spec()).train, strict=True):
        prompt = tokenizer.encode_prompt(row.value["prompt"])
        assert sequence.ids[: len(prompt)].tolist() == prompt.tolist()
        assert trained_bytes(tokenizer, row, sequence) == row.value["completion"].encode()
        ids = sequence.ids[sequence.trained]
        assert tokenizer.decode(ids) == row.value["completion"]
        assert [int(i) for i in ids if tokenizer.is_control(i)] == [1] == [ids[-1]]


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(min_size=1, max_size=9), answer=st.text(min_size=1, max_size=9), limit=st.integers(2, 60))
def test_trained_bytes_are_the_completion_s_up_to_the_limit(prompt: str, answer: str, limit: int) -> None:
    tokenizer = _tok_b()
    row = completion(prompt, f"x{answer}")
    spec = _spec(max_length=limit, on_bad_row="quarantine")
    begin = len(tokenizer.encode_prompt(prompt))
    if begin - 1 >= limit:
        with pytest.raises(LimbeckError) as caught:
            prepare([row], [], tokenizer, spec)
        assert caught.value.reason is Reason.NOTHING_TO_TRAIN
        return
    prepared = prepare([row], [], tokenizer, spec)
    (sequence,) = prepared.train
    wanted = f"x{answer}".encode()
    got = trained_bytes(tokenizer, row, sequence)
    assert wanted.startswith(got)
    assert len(sequence.ids) <= limit + 1
    assert np.flatnonzero(sequence.trained).tolist() == list(range(begin, len(sequence.ids)))
    whole = int(prepared.figures["lost_tokens"]) == 0
    assert bool(sequence.ids[-1] == 1) is whole
    assert len(wanted) - len(got) == prepared.figures["lost_bytes"]
    assert whole is not bool(prepared.figures["truncated"])


_kept: dict[str, Any] = {}


def _tok_b() -> Tokenizer:
    if "tok_b" not in _kept:
        _kept["tok_b"] = Tokenizer.load(Path(__file__).parents[1] / "data" / "tok_b")
    loaded: Tokenizer = _kept["tok_b"]
    return loaded


def _spec(**more: Any) -> Any:
    from limbeck.recipe import DataSpec

    return DataSpec(**({"path": "rows.jsonl", "holdout": 0} | more))


@pytest.mark.parametrize("name", ["tok_a", "tok_a_adds_bos"])
@pytest.mark.parametrize("template", ["plain", "no_bos"])
def test_case_c43_one_bos_at_the_start_of_every_row(
    tok: Load, spec: Spec, data: Path, name: str, template: str
) -> None:
    tokenizer = tok(name, template)
    rows, problems = read_rows([data / "C43" / "rows.jsonl"])
    prepared = prepare(rows, problems, tokenizer, spec())
    assert len(prepared.train) == 3
    for row, sequence in zip(rows, prepared.train, strict=True):
        assert sequence.ids.tolist().count(2) == 1
        assert sequence.ids[0] == 2
        if row.format != "text":
            prompt = tokenizer.encode_prompt(prompt_of(row))
            assert sequence.ids[: len(prompt)].tolist() == prompt.tolist()


def test_case_c43_both_tokenizers_and_templates_give_the_same_ids(tok: Load, spec: Spec, data: Path) -> None:
    found = [
        [s.ids.tolist() for s in prepared_file(data / "C43" / "rows.jsonl", tok(name, template), spec()).train]
        for name in ("tok_a", "tok_a_adds_bos")
        for template in ("plain", "no_bos")
    ]
    assert found == [found[0]] * 4


def test_case_c45_every_empty_answer_is_told_and_one_token_is_enough(tok: Load, spec: Spec, data: Path) -> None:
    file = data / "C45" / "rows.jsonl"
    reasons = expectation(data, "C45")["reasons"]
    with pytest.raises(LimbeckError) as caught:
        prepared_file(file, tok(), spec())
    assert caught.value.message == "1 of 6 rows are valid."
    assert [str(problem.line) for problem in caught.value.problems] == list(reasons)
    assert all(reasons[str(problem.line)] in problem.message for problem in caught.value.problems)
    prepared = prepared_file(file, tok(), spec(on_bad_row="quarantine"))
    (sequence,) = prepared.train
    assert trained_texts(tok(), sequence) == ["x<eos>"]
    assert (sequence.n, len(sequence.kept)) == (2, 2)
    assert prepared.figures["quarantined"] == 5


def test_case_c46_weights_say_what_is_trained(tok: Load, spec: Spec, data: Path) -> None:
    expected = expectation(data, "C46")
    prepared = prepared_file(data / "C46" / "rows.jsonl", tok(), spec(on_bad_row="quarantine"))
    texts = {sequence.line: trained_texts(tok(), sequence) for sequence in prepared.train}
    assert texts == {1: expected["line_1_trained_text"], 2: expected["line_2_trained_text"]}
    assert [(problem.line, problem.field) for problem in prepared.bad] == [
        (3, "messages[0].weight"),
        (3, "messages[1].weight"),
        (4, "messages"),
    ]
    assert "nothing to train" in prepared.bad[-1].message


def test_an_answer_cut_while_it_was_made_trains_no_end_token(tok: Load, spec: Spec, chat: Chat) -> None:
    rows = [completion("p", "ans", 1, finish_reason="length"), completion("p", "ans", 2, finish_reason="stop")]
    rows.append(
        chat(("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b"), line=3, finish_reason="length")
    )
    texts = [trained_texts(tok(), sequence) for sequence in prepare(rows, [], tok(), spec()).train]
    assert texts == [["ans"], ["ans<eos>"], ["a<end_of_turn>", "b"]]


def test_every_token_of_a_text_is_trained_but_the_first(tok: Load, spec: Spec) -> None:
    row = Row("rows.jsonl", 1, {"text": "abc"}, "text")
    (led,) = prepare([row], [], tok(), spec()).train
    assert trained_texts(tok(), led) == ["abc<eos>"]
    bare = tok(bos="never")
    (sequence,) = prepare([row], [], bare, spec()).train
    assert trained_texts(bare, sequence) == ["bc<eos>"]
    with pytest.raises(LimbeckError):  # one token without anything before it
        prepare([Row("rows.jsonl", 1, {"text": "a"}, "text")], [], bare, spec())


def test_a_conversation_cut_in_its_second_answer_keeps_the_first(tok: Load, spec: Spec, chat: Chat) -> None:
    row = chat(("user", "q1"), ("assistant", "first"), ("user", "q2"), ("assistant", "second"))
    prepared = prepare([row], [], tok(), spec(max_length=len("q1firstq2") + 4 + 4 + 1 + 2 * 12 + 3))
    (sequence,) = prepared.train
    texts = trained_texts(tok(), sequence)
    assert texts[0] == "first<end_of_turn>"
    assert "second".startswith(texts[1])
    assert 0 < len(texts[1]) < len("second")
    assert prepared.figures["truncated"] == 1


def test_what_follows_the_last_target_is_left_out(tok: Load, spec: Spec, chat: Chat) -> None:
    row = chat(("user", "q1"), ("assistant", "a"), ("user", "a long question"))
    (sequence,) = prepare([row], [], tok(), spec(max_length=40)).train
    assert trained_texts(tok(), sequence) == ["a<end_of_turn>"]
    assert sequence.trained[-1]


def test_a_pair_gives_two_sequences_with_one_prompt(tok: Load, spec: Spec) -> None:
    user = [{"role": "user", "content": "q"}]
    values = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {
            "prompt": user,
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
    ]
    rows = [Row("rows.jsonl", line, value, "preference") for line, value in enumerate(values, 1)]
    sequences = prepare(rows, [], tok(), spec()).train
    assert [(s.index, s.pair, s.chosen) for s in sequences] == [
        (0, 0, True),
        (1, 0, False),
        (2, 1, True),
        (3, 1, False),
    ]
    texts = [trained_texts(tok(), s)[0] for s in sequences]
    assert texts == ["good<eos>", "bad<eos>", "good<end_of_turn>", "bad<end_of_turn>"]
    for row, sequence in zip([rows[0], rows[0], rows[1], rows[1]], sequences, strict=True):
        prompt = tok().encode_prompt(prompt_of(row))
        assert sequence.ids[: len(prompt)].tolist() == prompt.tolist()
        assert sequence.trained.tolist() == [i >= len(prompt) for i in range(len(sequence.ids))]


def test_a_pair_that_the_limit_makes_equal_is_refused(tok: Load, spec: Spec) -> None:
    row = Row("rows.jsonl", 1, {"prompt": "p", "chosen": "same begin A", "rejected": "same begin B"}, "preference")
    with pytest.raises(LimbeckError) as caught:
        prepare([row], [], tok(), spec(max_length=8))
    assert caught.value.problems[0].field == "rejected"


def test_only_the_completion_of_a_chat_prompt_is_trained(tok: Load, spec: Spec) -> None:
    history = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
    ]
    row = Row("rows.jsonl", 1, {"prompt": history, "completion": "a2"}, "completion")
    (sequence,) = prepare([row], [], tok(), spec()).train
    assert trained_texts(tok(), sequence) == ["a2<end_of_turn>"]


def test_a_prompt_alone_is_nothing_to_train(tok: Load, spec: Spec) -> None:
    with pytest.raises(LimbeckError) as caught:
        prepare([Row("rows.jsonl", 1, {"prompt": "p"}, "prompt")], [], tok(), spec())
    assert "data.generator" in str(caught.value)


def test_chat_rows_without_a_template_are_one_problem(
    variant: Callable[..., Tokenizer], spec: Spec, chat: Chat
) -> None:
    rows = [chat(("user", "q"), ("assistant", "a"), line=line) for line in range(1, 5)]
    with pytest.raises(LimbeckError) as caught:
        prepare(rows, [], variant(None, (), "<bos>", "<eos>"), spec(on_bad_row="quarantine"))
    assert len(caught.value.problems) == 1


def test_a_file_that_cannot_be_read_is_never_set_aside(tok: Load, spec: Spec, tmp_path: Path) -> None:
    rows, problems = read_rows([tmp_path / "gone.jsonl"])
    with pytest.raises(LimbeckError) as caught:
        prepare([*rows, completion("p", "a")], problems, tok(), spec(on_bad_row="quarantine"))
    assert caught.value.reason is Reason.DATA_INVALID


def test_a_limit_takes_the_first_rows(tok: Load, spec: Spec) -> None:
    rows = [completion(f"p{line}", "a", line) for line in range(1, 9)]
    prepared = prepare(rows, [], tok(), spec(), limit=3)
    assert [sequence.line for sequence in prepared.train] == [1, 2, 3]


def test_each_split_counts_its_own_sequences_and_pairs(tok: Load, spec: Spec) -> None:
    rows = [
        Row("rows.jsonl", line, {"prompt": f"p{line}", "chosen": "a", "rejected": "b"}, "preference")
        for line in range(1, 11)
    ]
    prepared = prepare(rows, [], tok(), spec(holdout=0.3))
    for side, size in ((prepared.train, 14), (prepared.holdout, 6)):
        assert [sequence.index for sequence in side] == list(range(size))
        assert [sequence.pair for sequence in side] == [i // 2 for i in range(size)]
    assert prepared.figures["holdout_rows"] == 3


def test_a_split_row_keeps_the_answers_that_the_limit_leaves(tok: Load, spec: Spec, chat: Chat) -> None:
    tokenizer = tok("tok_a", "rewrites_history")
    row = chat(
        ("user", "q1"), ("assistant", "<think>t</think>a1"), ("user", "long " * 20), ("assistant", "<think>u</think>a2")
    )
    prepared = prepare([row], [], tokenizer, spec(max_length=60))
    assert [trained_texts(tokenizer, s) for s in prepared.train] == [["<think>t</think>a1<end_of_turn>"]]
    assert prepared.figures["truncated"] == 1
    assert prepared.figures["lost_bytes"] == len("<think>u</think>a2")


def test_no_token_reaches_from_a_chat_prompt_into_its_answer(
    data: Path, tmp_path: Path, spec: Spec, chat: Chat
) -> None:
    template = tmp_path / "dots.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + '.' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant.' }}{% endif %}"
    )
    tokenizer = Tokenizer.load(data / "tok_b", chat_template=template)
    row = chat(("user", "memory"), ("assistant", "more"), ("user", "m"), ("assistant", "m"))
    (sequence,) = prepare([row], [], tokenizer, spec()).train
    messages = row.value["messages"]
    for end in (1, 3):
        prompt = tokenizer.encode_prompt(messages[:end])
        assert sequence.ids[: len(prompt)].tolist() == prompt.tolist()
        assert sequence.trained[len(prompt)]
        assert not sequence.trained[len(prompt) - 1]
    assert trained_texts(tokenizer, sequence) == ["more", "m<eos>"]
