"""The split: by content, one side for a prompt, as many rows as asked."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Row, Tokenizer, prepare
from limbeck.data.rows import check_value
from limbeck.data.split import held_out, split_groups
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


SYSTEM = {"role": "system", "content": "Be kind."}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def groups(*values: dict[str, Any]) -> list[str]:
    formats: list[Any] = [check_value(value)[1] for value in values]
    return split_groups([Row("f", n, v, f) for n, (v, f) in enumerate(zip(values, formats, strict=True), 1)])


def asked(prompt: str, said: str) -> list[dict[str, Any]]:
    """The same prompt in every format."""
    return [
        {"prompt": prompt, "completion": "of a prompt"},
        {"prompt": prompt, "chosen": "one", "rejected": "another"},
        {"prompt": [user(prompt)], "completion": "of a chat"},
        {"prompt": [SYSTEM, user(prompt)], "chosen": [answer("one")], "rejected": [answer("another")]},
        {"messages": [user(prompt), answer("a"), user("And then?"), answer("b")]},
        {"messages": [SYSTEM, user(prompt), answer("c")]},
        {"prompt": f"{SYSTEM['content']}\n{prompt}", "completion": "of a flattened chat"},
        {"text": prompt},
        {"text": f"{prompt}{said}"},
        {"text": f"{SYSTEM['content']}\n{prompt} {said}"},
    ]


LETTERS = st.text("abcdeé ", min_size=1, max_size=9).filter(lambda text: bool(text.strip()))


@given(LETTERS, LETTERS, st.randoms())
def test_the_same_prompt_is_one_group_in_every_format_and_order(prompt: str, said: str, random: Any) -> None:
    rows = asked(f"?{prompt}", said)
    random.shuffle(rows)
    assert len(set(groups(*rows))) == 1


UNSEEN = "\u200b\ufeff\u00ad\u2060\u200d\u202e\u034f\ufe0f\u3164\U000e0041\x00\x1b \u00a0\u3000\n"


@given(st.text(min_size=1), st.lists(st.tuples(st.integers(0, 99), st.sampled_from(UNSEEN))), st.text())
def test_characters_that_nobody_sees_make_no_difference(prompt: str, unseen: list[tuple[int, str]], said: str) -> None:
    changed = prompt
    for place, char in unseen:
        changed = changed[:place] + char + changed[place:]
    rows = [{"prompt": prompt, "completion": f"a{said}"}, {"prompt": changed, "completion": "b"}]
    assert len(set(groups(*rows))) == 1
    assert len(set(groups(rows[0], {"text": f"{changed}A{said}"}))) == 1


def test_every_control_and_format_character_is_one_that_nobody_sees() -> None:
    chars = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf")]
    assert len(chars) > 200
    assert len(set(groups(*({"prompt": f"a{char}b", "completion": "c"} for char in ["", *chars])))) == 1


@given(st.text(min_size=1), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_neither_does_the_form_of_unicode(prompt: str, form: Any) -> None:
    other = unicodedata.normalize(form, prompt)
    assert len(set(groups({"prompt": prompt, "completion": "a"}, {"prompt": other, "completion": "b"}))) == 1


@given(st.lists(st.text("Ab é\u00adſ", min_size=1, max_size=4), min_size=1, max_size=12))
def test_groups_are_those_of_comparing_every_pair(texts: list[str]) -> None:
    """Text rows: together as far as one begins with another, directly or by way of others."""
    plain = ["".join(text.casefold().replace("\u00ad", "").split()) for text in texts]
    expected = list(range(len(texts)))
    for one, other in [(a, b) for a in range(len(texts)) for b in range(len(texts))]:
        if plain[one] == plain[other] or (plain[other] and plain[one].startswith(plain[other])):
            low, high = sorted((expected[one], expected[other]))
            expected = [low if group == high else group for group in expected]
    found = split_groups([Row("f", n, {"text": text}, "text") for n, text in enumerate(texts)])
    for one in range(len(texts)):
        for other in range(one):
            assert (found[one] == found[other]) == (expected[one] == expected[other])


def test_the_same_words_cut_elsewhere_are_one_group_and_other_prompts_are_not() -> None:
    cut = [
        {"prompt": "Q: why? A:", "completion": "Because it rains."},
        {"prompt": "Q: why? A: Because", "completion": " it rains."},
        {"text": "Q: why? A: Because it rains."},
        {"prompt": "Q: why? A: Beca", "chosen": "use it rains", "rejected": "lmed"},
    ]
    assert len(set(groups(*cut))) == 1
    apart = [
        {"prompt": "What is this", "completion": "a"},
        {"prompt": "What is this thing", "completion": "a"},
        {"prompt": "What is", "completion": "nothing"},
        {"text": "What was this?"},
    ]
    assert len(set(groups(*apart))) == 4
    assert len(set(groups(*apart, {"text": "What is this thing? A pen."}))) == 2


def test_a_prompt_of_nothing_to_be_seen_gathers_no_texts() -> None:
    rows = [{"prompt": "\u200b", "completion": "a"}, {"prompt": "\ufeff", "completion": "b"}, {"text": "Some text."}]
    first, second, third = groups(*rows)
    assert first == second != third


def test_plain_rows_are_put_in_order_by_their_prompt_alone() -> None:
    """The split of a set of prompts must stay what it was: models were trained on it."""
    prompts = [f"Say {number}:  Ünd" for number in range(40)]
    found = groups(*({"prompt": prompt, "completion": "a"} for prompt in prompts))
    assert found == [f"say {number}: ünd" for number in range(40)]
    assert [i for i, side in enumerate(held_out(found, 4, 0)) if side] == [7, 11, 15, 32]


def test_many_rows_are_grouped_in_one_pass() -> None:
    rows = [Row("f", n, {"prompt": f"<{n}> " * 40, "completion": "a"}, "completion") for n in range(3000)]
    rows += [Row("f", n, {"text": f"<{n}> " * 80}, "text") for n in range(3000)]
    found = split_groups(rows)
    assert found[:3000] == found[3000:]
    assert len(set(found)) == 3000


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
