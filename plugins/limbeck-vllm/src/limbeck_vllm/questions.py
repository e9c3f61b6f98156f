"""Limbeck's requests as questions to the engine, and its answers as Limbeck's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Said, Sampling, ScoreItem, Want
from limbeck.signals import Signal, TokenLogprobs, TopK
from limbeck_vllm.frames import Answer, Question, Rows

# Every field that has a say in what is written, so that no default of vLLM's or of a folder's has one.
NOTHING_ELSE = {
    "n": 1,
    "min_p": 0.0,
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
}
GREEDY = NOTHING_ELSE | {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 1}
COOLEST, HOTTEST = 0.01, 2.0  # temperatures that vLLM takes; it would change a lower one without a word


def check_sampling(sampling: Sampling) -> None:
    """Refuse what vLLM cannot do: GENERATION_FAILED."""
    if sampling.temperature and not COOLEST <= sampling.temperature <= HOTTEST:
        message = f"is {sampling.temperature}, vLLM takes 0 (greedy) or {COOLEST} … {HOTTEST}"
        raise LimbeckError(Reason.GENERATION_FAILED, problems=[Problem(message, field="temperature")])


def score_question(item: ScoreItem, want: Want, number: int) -> Question:
    """Ask for the rows of an item. No token behind them is sent: no row reads it.

    The row of the last token is that of the token which the engine writes.
    """
    ids = item.ids[: item.first_row + item.n + 1]
    inside = min(item.n, len(ids) - 1 - item.first_row)  # rows that speak of a token of the prompt
    support = want.top_k if want.top_k or want.target else None
    behind = (-1 if want.token_ids else support) if inside < item.n else None
    return Question(
        number,
        ids,
        item.first_row,
        inside,
        prompt_logprobs=support if inside else None,
        logprobs=behind,
        token_ids=_padded(item)[:inside] if want.token_ids and inside else None,
        sampling=GREEDY,
    )


def signal_of(item: ScoreItem, want: Want, answer: Answer) -> Signal:
    """The signal of an item. Raises SCORING_FAILED where numbers are not."""
    parts = [rows for rows in (answer.prompt, answer.said) if rows is not None]
    top_k = target = None
    if want.top_k:
        k = want.top_k
        ids = np.concatenate([rows.ids[:, :k] for rows in parts])
        logprobs = np.concatenate([rows.logprobs[:, :k] for rows in parts])
        top_k = _top_k(ids, logprobs, item.item_id, Reason.SCORING_FAILED)
    if want.target:
        assert answer.prompt is not None
        target = _sound(answer.prompt.target, item.item_id, Reason.SCORING_FAILED)
    token_ids = _given_ids(item, answer) if want.token_ids else None
    return Signal(item.first_row, item.n, top_k=top_k, target=target, token_ids=token_ids)


def prompt_question(prompt: Prompt, sampling: Sampling, eos_ids: Sequence[int], number: int) -> Question:
    """Ask for a continuation, drawn as (seed, item_id) say."""
    fields = NOTHING_ELSE | {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(eos_ids),
        "seed": seed_of(sampling.seed, prompt.item_id),
    }
    return Question(number, prompt.ids, logprobs=sampling.logprobs or None, sampling=fields)


def completion_of(prompt: Prompt, eos_ids: Sequence[int], answer: Answer) -> Completion:
    """The continuation. Raises GENERATION_FAILED where what was said is no number."""
    written = answer.written
    ids = written[:-1] if answer.stopped and int(written[-1]) in eos_ids else written
    said = None
    if answer.said is not None:
        rows: Rows = answer.said
        reason = Reason.GENERATION_FAILED
        top_k = _top_k(rows.ids, rows.logprobs, prompt.item_id, reason)
        said = Said(written, top_k, _sound(rows.target, prompt.item_id, reason))
    return Completion(prompt.item_id, ids, "stop" if answer.stopped else "length", said)


def seed_of(seed: int, item_id: int) -> int:
    """A seed of 63 bits that depends on both, and on nothing else."""
    words = [number & (2**64 - 1) for number in (seed, item_id)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _top_k(ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], item_id: int, reason: Reason) -> TopK:
    return TopK.without_tail(ids, _sound(logprobs, item_id, reason))


def _sound(logprobs: npt.NDArray[np.float32], item_id: int, reason: Reason) -> npt.NDArray[np.float32]:
    if np.isnan(logprobs).any():
        hint = "the weights hold NaN, or the precision overflows: try dtype float32"
        problem = Problem("the model's numbers are not finite", field=f"item {item_id}", hint=hint)
        raise LimbeckError(reason, problems=[problem])
    return logprobs


def _counts(item: ScoreItem) -> npt.NDArray[np.int64]:
    """How many ids are asked of each row [n]."""
    assert item.token_ids is not None
    if item.offsets is None:
        return np.full(item.n, item.token_ids.shape[1], dtype=np.int64)
    return np.diff(item.offsets)


def _places(item: ScoreItem) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row and column, in a table of rows, of each asked id in the order of the question."""
    counts = _counts(item)
    rows = np.repeat(np.arange(item.n), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def _padded(item: ScoreItem) -> npt.NDArray[np.int32]:
    """The asked ids as a table [n, m], −1 where a row asks fewer; m is at least 1."""
    assert item.token_ids is not None
    table = np.full((item.n, max(1, int(_counts(item).max(initial=0)))), -1, dtype=np.int32)
    table[_places(item)] = item.token_ids.ravel()
    return table


def _given_ids(item: ScoreItem, answer: Answer) -> TokenLogprobs:
    """What is said of the ids that were given: by the engine's table [rows, m], and by the last token's full row."""
    assert item.token_ids is not None
    table = _padded(item)
    parts = [] if answer.token_ids is None else [answer.token_ids[: item.n]]
    if answer.said is not None:
        full = np.empty(answer.said.ids.shape[1], dtype=np.float32)
        full[answer.said.ids[0]] = answer.said.logprobs[0]
        parts.append(full[table[-1:]])
    rows, columns = _places(item)
    logprobs = np.concatenate(parts)[rows, columns].astype(np.float32)
    sound = _sound(logprobs, item.item_id, Reason.SCORING_FAILED).reshape(item.token_ids.shape)
    return TokenLogprobs(item.token_ids, sound, item.offsets)
