"""One contestant of a comparison: what it makes of the reference answers, and what it answers itself."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import (
    Prompt,
    Sampling,
    ScoreItem,
    StartingTeacher,
    Teacher,
    TextPrompt,
    TextTeacher,
    Want,
)
from limbeck.runs.questions import Question

if TYPE_CHECKING:
    from limbeck.data import Tokenizer, TokenSequence
    from limbeck.recipe import DataSpec
    from limbeck.signals import Signal

TOP_K = 64  # asked of a teacher that tells the likelihood of its likeliest tokens only
ASKED_AT_ONCE = 16  # prompts; the time of an answer runs from when these were asked
TOO_LONG = "failed: too long for the model"
EMPTY = "failed: no answer"

T = TypeVar("T")
Told = Callable[[str, int, int], object]  # what is being done, how far it is, of how much


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model holds the text of one reference: `nats` over its `tokens` and `bytes`, no end token."""

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's greedy answer. `rejected`: why it is none (refused, failed: …, empty). `cut`: at max_new_tokens.

    `read` and `written`: tokens, None where nobody says. `seconds` from when it was asked.
    """

    text: str
    cut: bool
    rejected: str | None
    seconds: float
    read: int | None = None
    written: int | None = None


@dataclass
class Outcome:
    """What was found out, by place of the question. `exact`: the likelihoods are no mere bounds from below.

    `seconds` of answering in all. `usage`, `price` and `currency` as a TextTeacher tells them.
    """

    likelihoods: dict[int, Likelihood] = field(default_factory=dict)
    exact: bool = True
    too_long: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)
    seconds: float = 0.0
    usage: Mapping[str, float] = field(default_factory=dict)
    price: tuple[float, float] | None = None
    currency: str | None = None


async def contend_by_text(teacher: TextTeacher, asked: Sequence[Question], sampling: Sampling, told: Told) -> Outcome:
    """Ask a teacher that knows text only. Raises what it raises."""
    info = teacher.info()
    outcome = Outcome(price=info.price, currency=info.currency)
    every = [TextPrompt(place, question.prompt) for place, question in enumerate(asked) if question.prompt is not None]
    for prompts in _groups(every):
        began = time.monotonic()
        async with aclosing(teacher.complete(prompts, sampling)) as answers:
            async for said in answers:
                rejected = said.rejected or _blank(said.text)
                cut = said.finish_reason == "length"
                counts = [said.lineage.get(name) for name in ("prompt_tokens", "completion_tokens")]
                seconds = time.monotonic() - began
                outcome.answers[said.item_id] = Answer(said.text, cut, rejected, seconds, *counts)
                told("answers", len(outcome.answers), len(every))
        outcome.seconds += time.monotonic() - began
    _none_missing(outcome, [prompt.item_id for prompt in every])
    outcome.usage = dict(teacher.usage())
    return outcome


async def contend(
    teacher: Teacher, tokenizer: Tokenizer, asked: Sequence[Question], sampling: Sampling, data: DataSpec, told: Told
) -> Outcome:
    """Ask a teacher of token ids, through its own tokenizer, once it is ready. Raises what it raises."""
    if isinstance(teacher, StartingTeacher):
        await teacher.start(lambda what: told(what, 0, 0))
    outcome = Outcome()
    if (want := _want(teacher)) is not None:
        await _score(teacher, tokenizer, asked, want, data, outcome, told)
    if "generate" in teacher.info().capabilities:
        await _answer(teacher, tokenizer, asked, sampling, outcome, told)
    return outcome


def _want(teacher: Teacher) -> Want | None:
    """The cheapest question that tells the likelihood of a given token."""
    info = teacher.info()
    if "target" in info.capabilities:
        return Want(target=True)
    if "token_ids" in info.capabilities:
        return Want(token_ids=True)
    return Want(top_k=min(TOP_K, info.max_top_k or info.vocab_size)) if "top_k" in info.capabilities else None


async def _score(
    teacher: Teacher,
    tokenizer: Tokenizer,
    asked: Sequence[Question],
    want: Want,
    data: DataSpec,
    outcome: Outcome,
    told: Told,
) -> None:
    rows = await asyncio.to_thread(_sequences, tokenizer, asked, data)
    most = min(data.max_length + (tokenizer.bos_id is not None), teacher.info().max_length)
    fit = {place: row for place, row in rows.items() if len(row.ids) <= most}
    outcome.too_long = len(rows) - len(fit)
    outcome.exact = not want.top_k
    if not fit:
        return
    items = [ScoreItem(place, row.ids, row.first_row, row.n, _next_ids(row, want)) for place, row in fit.items()]
    async with aclosing(teacher.score(items, want)) as answers:
        async for place, signal in answers:
            outcome.likelihoods[place] = _likelihood(fit[place], signal, tokenizer)
            told("references", len(outcome.likelihoods), len(fit))


def _sequences(tokenizer: Tokenizer, asked: Sequence[Question], data: DataSpec) -> dict[int, TokenSequence]:
    """The rows with a text to score as ids, by place, uncut; one that cannot be read as training would is left out."""
    from limbeck.data import prepare

    spec = data.model_copy(update={"holdout": 0, "max_length": 1 << 30, "on_bad_row": "quarantine"})
    # Where it was read is a row's name in what is prepared of it; here that is its place.
    rows = [replace(one.scored, source="", line=place) for place, one in enumerate(asked) if one.scored is not None]
    try:
        return {one.line: one for one in prepare(rows, [], tokenizer, spec).train} if rows else {}
    except LimbeckError as error:
        if error.reason is Reason.NOTHING_TO_TRAIN:
            return {}
        raise


def _next_ids(row: TokenSequence, want: Want) -> Any:
    """For each row of the item the token that follows, [n, 1]."""
    return row.ids[row.first_row + 1 : row.first_row + row.n + 1, None] if want.token_ids else None


def _likelihood(row: TokenSequence, signal: Signal, tokenizer: Tokenizer) -> Likelihood:
    """Of the text's tokens. End tokens are left out: families end their texts in different ways."""
    text = np.array([at for at in row.kept if not tokenizer.is_control(int(row.ids[at + 1]))])
    places = text - signal.first_row
    if signal.target is not None:
        found = signal.target[places]
    elif signal.token_ids is not None:
        found = signal.token_ids.logprobs[places, 0]
    else:
        assert signal.top_k is not None, "one of the three was asked"
        ids, logprobs, tail = signal.top_k.at(1.0)
        hit = ids == row.ids[1 + signal.first_row :][: signal.n, None]
        found = np.where(hit.any(axis=1), np.where(hit, logprobs, 0.0).sum(axis=1), tail)[places]
    offsets = row.offsets[text + 1]
    return Likelihood(-float(found.astype(np.float64).sum()), len(text), int(offsets[:, 1].max() - offsets[:, 0].min()))


async def _answer(
    teacher: Teacher, tokenizer: Tokenizer, asked: Sequence[Question], sampling: Sampling, outcome: Outcome, told: Told
) -> None:
    most = teacher.info().max_length - sampling.max_new_tokens
    prompts = [
        Prompt(place, tokenizer.encode_prompt(question.prompt))
        for place, question in enumerate(asked)
        if question.prompt is not None
    ]
    lengths = {prompt.item_id: len(prompt.ids) for prompt in prompts}
    fit = [prompt for prompt in prompts if len(prompt.ids) <= most]
    if fit:  # what is loaded or compiled at the first request is not the time of an answer
        async with aclosing(teacher.generate(fit[:1], replace(sampling, max_new_tokens=1))) as answers:
            async for _ in answers:
                pass
    for group in _groups(fit):
        began = time.monotonic()
        async with aclosing(teacher.generate(group, sampling)) as answers:
            async for said in answers:
                text, ended = tokenizer.decode(said.ids), said.finish_reason == "stop"
                seconds = time.monotonic() - began
                counts = (lengths[said.item_id], len(said.ids) + ended)
                outcome.answers[said.item_id] = Answer(text, not ended, _blank(text), seconds, *counts)
                told("answers", len(outcome.answers), len(prompts))
        outcome.seconds += time.monotonic() - began
    for prompt in prompts:
        if len(prompt.ids) > most:
            outcome.answers[prompt.item_id] = Answer("", False, TOO_LONG, math.nan)
    _none_missing(outcome, list(lengths))


def _groups(asked: Sequence[T]) -> Iterator[Sequence[T]]:
    return (asked[first : first + ASKED_AT_ONCE] for first in range(0, len(asked), ASKED_AT_ONCE))


def _none_missing(outcome: Outcome, places: Sequence[int]) -> None:
    for place in places:
        outcome.answers.setdefault(place, Answer("", False, EMPTY, math.nan))


def _blank(text: str) -> str | None:
    return None if text.strip() else "empty"
