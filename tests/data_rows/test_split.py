"""The split: by content, one side for a prompt, as many rows as asked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Row, Tokenizer, prepare
from limbeck.data.split import held_out, split_key
from limbeck.errors import LimbeckError

KEYS = st.lists(st.sampled_from("abcdefg"), max_size=12)


@given(KEYS, st.one_of(st.floats(0, 0.99), st.integers(1, 9)), st.integers(0, 3))
def test_a_prompt_is_on_one_side_and_the_number_is_met_as_closely_as_can_be(
    keys: list[str], holdout: float | int, seed: int
) -> None:
    held = held_out(keys, holdout, seed)
    assert len(held) == len(keys)
    assert not {k for k, side in zip(keys, held, strict=True) if side} & {
        k for k, side in zip(keys, held, strict=True) if not side
    }
    sizes = [keys.count(key) for key in set(keys)]
    wanted = min(round(len(keys) * holdout) if holdout < 1 else int(holdout), len(keys))
    sums = {sum(part) for n in range(len(sizes)) for part in combinations(sizes, n)} or {0}
    if wanted < len(keys):
        best = min(abs(total - wanted) for total in sums | {len(keys)})
        if min(abs(total - wanted) for total in sums) == best:
            assert abs(sum(held) - wanted) == best
    if keys:
        assert not all(held)


@given(KEYS, st.randoms())
def test_the_order_of_the_rows_makes_no_difference(keys: list[str], random: Any) -> None:
    sides = dict(zip(keys, held_out(keys, 0.3, 1), strict=True))
    shuffled = list(keys)
    random.shuffle(shuffled)
    assert dict(zip(shuffled, held_out(shuffled, 0.3, 1), strict=True)) == sides


def test_the_seed_chooses_and_large_sets_are_met_exactly() -> None:
    keys = [str(number) for number in range(1000)]
    first, second = held_out(keys, 0.1, 0), held_out(keys, 0.1, 1)
    assert sum(first) == sum(second) == 100
    assert first != second
    assert first == held_out(keys, 0.1, 0)
    assert sum(held_out(keys, 37, 0)) == 37


def test_a_prompt_is_the_same_in_every_format_case_and_spacing() -> None:
    system = {"role": "system", "content": "s"}
    user = {"role": "user", "content": " What  is\nTHIS? "}
    answer = {"role": "assistant", "content": "a"}
    rows = [
        Row("f", 1, {"prompt": "what is this?", "completion": "a"}, "completion"),
        Row("f", 2, {"prompt": "What is this?", "chosen": "a", "rejected": "b"}, "preference"),
        Row("f", 3, {"messages": [system, user, answer, {**user, "content": "and then?"}, answer]}, "messages"),
        Row("f", 4, {"prompt": [user], "completion": "a"}, "completion"),
        Row("f", 5, {"text": "Ｗhat is this?"}, "text"),
    ]
    assert {split_key(row) for row in rows} == {"what is this?"}


@pytest.mark.parametrize("holdout", [0.25, 2])
def test_the_same_prompt_is_never_on_both_sides(
    tok: Callable[..., Tokenizer], spec: Callable[..., Any], holdout: float | int
) -> None:
    rows = [
        Row("f", line, {"prompt": f"Prompt {line % 4}", "completion": f"a{line}"}, "completion") for line in range(1, 9)
    ]
    prepared = prepare(rows, [], tok(), spec(holdout=holdout))
    sides = [{sequence.line % 4 for sequence in side} for side in (prepared.train, prepared.holdout)]
    assert not sides[0] & sides[1]
    assert len(prepared.holdout) == 2


def test_one_prompt_for_all_rows_holds_nothing_out_and_says_so(
    tok: Callable[..., Tokenizer], spec: Callable[..., Any]
) -> None:
    rows = [Row("f", line, {"prompt": "p", "completion": f"a{line}"}, "completion") for line in range(1, 9)]
    prepared = prepare(rows, [], tok(), spec(holdout=0.5))
    assert (len(prepared.train), len(prepared.holdout)) == (8, 0)
    assert [note.field for note in prepared.notes] == ["data.holdout"]


def test_to_hold_out_every_row_is_refused(tok: Callable[..., Tokenizer], spec: Callable[..., Any]) -> None:
    rows = [Row("f", 1, {"prompt": "p", "completion": "a"}, "completion")]
    with pytest.raises(LimbeckError) as caught:
        prepare(rows, [], tok(), spec(holdout=5))
    assert caught.value.problems[0].field == "data.holdout"
