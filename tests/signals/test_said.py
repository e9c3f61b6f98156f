"""What a teacher says while it writes, as messages and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import CAPABILITIES, Completion, Prompt, Said, Sampling, TeacherInfo
from limbeck.signals import TopK
from limbeck.signals.fragments import FRAGMENT
from limbeck.signals.said import CompletionReader, completion_messages, header_of_said, most_bytes

INFO = TeacherInfo(
    name="made up",
    vocab_size=200_000,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    max_length=1 << 20,
    capabilities=frozenset(CAPABILITIES),
    eos_ids=(1, 106),
    bos_id=2,
)
PROMPT = Prompt(7, np.array([2, 70, 71], np.int32))


def said(ids: list[int], k: int, *, target: bool = True) -> Said:
    rng = np.random.default_rng(len(ids) + k)
    n = len(ids)
    asked = np.stack([rng.choice(INFO.vocab_size, k, replace=False) for _ in range(n)]) if n else np.zeros((0, k), int)
    logprobs = np.log(rng.dirichlet(np.ones(k + 1), n)).astype(np.float32)
    top_k = TopK.without_tail(asked, logprobs[:, :k])
    return Said(np.array(ids, np.int32), top_k, logprobs[:, 0] if target else None)


def written(ids: list[int], end: int | None, k: int, **more: Any) -> Completion:
    told = said([*ids, *([] if end is None else [end])], k, **more)
    return Completion(7, np.array(ids, np.int32), "length" if end is None else "stop", told)


def through(answer: Completion, sampling: Sampling) -> tuple[Completion, int]:
    """The answer as a client reads it, and in how many messages."""
    header = header_of_said(INFO, sampling)
    reader = CompletionReader(PROMPT, header)
    parts = list(completion_messages(PROMPT, answer, sampling, INFO, 7))
    assert sum(cost for _, cost in parts) <= most_bytes(sampling, header)
    *found, last = [reader.add(type(part).FromString(part.SerializeToString())) for part, _ in parts]
    assert found == [None] * (len(parts) - 1)
    assert max(part.ByteSize() for part, _ in parts) < 2 * FRAGMENT
    return last, len(parts)


def same(one: Completion, other: Completion) -> None:
    assert (one.item_id, one.finish_reason) == (other.item_id, other.finish_reason)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.said.ids, other.said.ids)
    assert one.said.ids.dtype == np.int32
    assert one.said.top_k.temperatures == other.said.top_k.temperatures
    for name in ("ids", "u", "tails"):
        np.testing.assert_array_equal(getattr(one.said.top_k, name), getattr(other.said.top_k, name))
    np.testing.assert_array_equal(one.said.target, other.said.target)


@pytest.mark.parametrize(
    "answer",
    [
        written([5, 6, 199_999], None, 4),
        written([5, 6], 106, 4),
        written([5, 6], 106, 4, target=False),
        written([], 1, 4),
        written([], None, 4),
        replace(written([5, 6], None, 4), finish_reason="stop"),  # nothing is known of its end
    ],
)
def test_what_was_said_arrives_bit_for_bit(answer: Completion) -> None:
    found, count = through(answer, Sampling(max_new_tokens=3, logprobs=4))
    same(found, answer)
    assert count == 1


def test_a_long_text_with_many_logprobs_comes_in_messages_of_about_a_mebibyte() -> None:
    answer = written([5] * 8000, 1, 64)
    found, count = through(answer, Sampling(max_new_tokens=8000, logprobs=64))
    same(found, answer)
    assert count == 3


def test_without_logprobs_nothing_is_said() -> None:
    found, _ = through(written([5, 6], 1, 4), Sampling(max_new_tokens=2))
    assert found.said is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (replace(written([5, 6], None, 4), said=None), "is missing"),
        (written([5, 6, 7, 8], None, 4), "4 tokens were written, 3 are allowed"),
        (replace(written([5, 6], None, 4), said=said([6, 5], 4)), "not of the tokens that were written"),
        (replace(written([5, 6], None, 4), said=said([5], 4)), "not of the tokens that were written"),
        (replace(written([5, 6], 7, 4)), "not of the tokens that were written"),  # 7 ends nothing
        (replace(written([5, 6], 1, 4), finish_reason="length"), "not of the tokens that were written"),
        (written([5, 6], 1, 5), "ids have shape (3, 5), (3, 4) is needed"),
    ],
)
def test_a_teacher_that_says_something_else_is_an_error(answer: Completion, message: str) -> None:
    with pytest.raises(LimbeckError) as caught:
        through(answer, Sampling(max_new_tokens=3, logprobs=4))
    assert caught.value.reason is Reason.SIGNAL_INVALID
    assert message in caught.value.problems[0].message


def test_messages_that_do_not_fit_together_are_an_error() -> None:
    sampling = Sampling(max_new_tokens=8000, logprobs=64)
    first, second, third = (
        part for part, _ in completion_messages(PROMPT, written([5] * 8000, 1, 64), sampling, INFO, 7)
    )
    for parts in ([second], [first, first], [first, third], [first, second, third.__class__(item_id=7)]):
        reader = CompletionReader(PROMPT, header_of_said(INFO, sampling))
        with pytest.raises(LimbeckError) as caught:
            list(map(reader.add, parts))
        assert caught.value.reason is Reason.SIGNAL_INVALID
