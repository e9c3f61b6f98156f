"""What clients ask, checked before any work: as a teacher in this process would, and as far as messages allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.service.config import Limits
from limbeck.signals import SignalHeader
from limbeck.signals.fragments import LARGEST_ROW, row_costs
from limbeck.signals.messages import item_of, numbers, sampling_of, want_of
from limbeck.signals.said import header_of_said, most_bytes, row_bytes
from limbeck.teachers.requests import check_prompts, check_score
from limbeck.v1 import teacher_service_pb2 as pb

MOST_ASKED = 256  # temperatures, or layers: what is wrong with each is told, so there must be an end


def expect(expectation: pb.Expectation, there: TeacherInfo | SignalHeader) -> None:
    """Raise TOKENIZER_MISMATCH or TEACHER_MISMATCH, naming all that differs, where something else is expected."""
    problems = [
        Problem(f"is {getattr(there, name)}, {str(getattr(expectation, name))[:80]} is expected", field=name)
        for name in ("tokenizer_digest", "weights_digest", "vocab_size")
        if expectation.HasField(name) and getattr(expectation, name) != getattr(there, name)
    ]
    if problems:
        tokenizer = problems[0].field == "tokenizer_digest"
        raise LimbeckError(Reason.TOKENIZER_MISMATCH if tokenizer else Reason.TEACHER_MISMATCH, problems=problems)


def checked_want(message: pb.Want, info: TeacherInfo) -> Want:
    """What is asked of every item. Raises REQUEST_INVALID, CAPABILITY_MISSING."""
    for name, values in (("temperatures", message.temperatures), ("layers", message.layers)):
        if len(values) > MOST_ASKED:
            raise invalid(f"{len(values):,} {name} are asked for, {MOST_ASKED} are allowed", "want")
    want = want_of(message)
    if list(want.temperatures) != sorted(set(want.temperatures)):
        raise invalid(f"temperatures are {list(want.temperatures)[:8]}; they must be distinct and ascending", "want")
    if len(set(want.layers)) != len(want.layers):
        raise invalid("a layer is asked for twice", "want")
    check_score(info, [], want)
    row = row_costs(ScoreItem(0, np.zeros(1, np.int32), 0, 1), want, info)
    if row[0] > LARGEST_ROW:
        raise invalid(f"a row's answer takes {row[0]:,} bytes, {LARGEST_ROW:,} fit a message", "want")
    return want


def checked_item(
    message: pb.ScoreItem, want: Want, info: TeacherInfo, limits: Limits, *, bfloat16: bool
) -> tuple[int, int]:
    """Tokens of an item, and bytes of its answer. Raises REQUEST_INVALID, QUOTA_EXCEEDED."""
    item = item_of(message, want)
    with _of_a_request():
        check_score(info, [item], want)
    costs = row_costs(item, want, info, bfloat16=bfloat16)
    field, largest, cost = f"item {item.item_id}", int(costs.max()), int(costs.sum())
    if largest > LARGEST_ROW:
        raise invalid(f"a row's answer takes {largest:,} bytes, {LARGEST_ROW:,} fit a message", field)
    if cost > limits.answer_bytes:
        text = f"its answer takes {cost:,} bytes, {limits.answer_bytes:,} are allowed"
        raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[Problem(text, field=field, hint="ask for fewer rows")])
    return len(item.ids), cost


def checked_sampling(message: pb.Sampling, info: TeacherInfo) -> Sampling:
    """How texts are drawn. Raises REQUEST_INVALID, CAPABILITY_MISSING."""
    sampling = sampling_of(message)
    with _of_a_request():
        check_prompts(info, [], sampling)
    row = row_bytes(header_of_said(info, sampling))
    if row > LARGEST_ROW:
        raise invalid(f"what is said of a token takes {row:,} bytes, {LARGEST_ROW:,} fit a message", "logprobs")
    return sampling


def checked_prompt(message: pb.Prompt, sampling: Sampling, info: TeacherInfo, limits: Limits) -> tuple[int, int]:
    """Tokens of a prompt and its continuation, and bytes of its answer at most.

    Raises REQUEST_INVALID, QUOTA_EXCEEDED.
    """
    field = f"item {message.item_id}"
    ids = numbers(message.ids, "<i4", f"{field}: ids")
    with _of_a_request():
        check_prompts(info, [Prompt(message.item_id, ids)], sampling)
    cost = most_bytes(sampling, header_of_said(info, sampling))
    if cost > limits.answer_bytes:
        text = f"its continuation takes up to {cost:,} bytes, {limits.answer_bytes:,} are allowed"
        hint = "ask for fewer logprobs, or lower max_new_tokens"
        raise LimbeckError(Reason.QUOTA_EXCEEDED, problems=[Problem(text, field=field, hint=hint)])
    return len(ids) + sampling.max_new_tokens, cost


def invalid(message: str, field: str | None = None) -> LimbeckError:
    """A request that cannot be."""
    return LimbeckError(Reason.REQUEST_INVALID, problems=[Problem(message, field=field)])


@contextmanager
def _of_a_request() -> Iterator[None]:
    """What a teacher in this process could not score is here a request that is not valid."""
    try:
        yield
    except LimbeckError as error:
        if error.reason in (Reason.SCORING_FAILED, Reason.GENERATION_FAILED):
            raise LimbeckError(Reason.REQUEST_INVALID, problems=error.problems) from error
        raise
