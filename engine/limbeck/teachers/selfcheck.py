"""The self-check: scores of a known text against the teacher's own greedy next tokens.

A teacher whose rows are shifted by one gives plausible numbers and a loss that goes down, so nothing else would tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Prompt, Said, Sampling, ScoreItem, Teacher, Want

if TYPE_CHECKING:
    from limbeck.data import Tokenizer
    from limbeck.signals import Signal

TEXTS = (
    "The quick brown fox jumps over the lazy dog, while 27 ravens watch from a wire.",
    "Water boils at 100 degrees; ask a cook in Quito, and the answer will be another one!",
    "def add(first, second):\n    return first + second\n\nprint(add(19, 23))",
)
READ = 24  # tokens of a text that are read
WRITTEN = 8  # tokens that are added greedily
NEAR = 0.3  # log-probabilities this close are a tie: where logits are bfloat16, a step between 16 and 32 is 0.125

Expected = list[set[int]]  # per row, the ids that may be the most likely ones: one id, or every end id


async def self_check(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """Compare what `teacher` scores with what it writes, row by row. Raises SELF_CHECK_FAILED.

    A known text, continued greedily, is scored through the whole path. Its best id in each row must be the one that
    the teacher writes after this prefix, and the target's log-probability that of the same id in the support. The
    check counts only where the expected ids are not those of a shifted row; else another text is taken. What it says
    while it writes (`generate_top_k`) must be what it scores, too. A teacher that cannot both write and score a top k
    has nothing to compare and passes.
    """
    info = teacher.info()
    if not {"generate", "top_k"} <= info.capabilities:
        return
    for text in TEXTS:
        start = tokenizer.encode_prompt(text)[: min(READ, info.max_length - WRITTEN)]
        ids, expected, said = await _written(teacher, start)
        signal, prefix = await _scored(teacher, ids)
        for answer in (signal, prefix):
            bad = [row for row, allowed in enumerate(expected) if not _says(answer, row, allowed)]
            if bad:
                message = (
                    f"{len(bad)} of {answer.n} rows of a known text do not have the teacher's own next token as the "
                    f"most likely one, first row {bad[0]}"
                )
                raise _failed(message, _shift(answer, expected))
            _compare_target(answer, ids)
        _compare_said(said, signal, ids, len(start))
        if all(_differs(signal, expected, by) for by in (-1, 1)):
            return
    raise _failed(
        "the teacher says the same in neighbouring rows of every known text, so that a shift by one could not be seen",
        "see that it is a trained model, and that its weights and tokenizer belong together",
    )


async def _written(
    teacher: Teacher, start: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], Expected, Said | None]:
    """The text with its greedy continuation, ids [t], and what the teacher writes after each prefix, t sets.

    And what it said of the continuation, None where it does not tell.
    """
    ends = set(teacher.info().eos_ids)
    said: Said | None = None
    prefixes = [Prompt(i, start[: i + 1]) for i in range(len(start))]
    after: dict[int, set[int]] = {}
    async with aclosing(teacher.generate(prefixes, Sampling(max_new_tokens=1))) as answers:
        async for answer in answers:
            after[answer.item_id] = {int(answer.ids[0])} if len(answer.ids) else ends
    expected = [after[i] for i in range(len(start))]
    ids = start
    tells = "generate_top_k" in teacher.info().capabilities
    sampling = Sampling(max_new_tokens=WRITTEN, logprobs=int(tells))
    async with aclosing(teacher.generate([Prompt(0, start)], sampling)) as answers:
        async for answer in answers:
            ids = np.concatenate([start, answer.ids]).astype(np.int32)
            following = [{int(i)} for i in answer.ids[1:]]
            expected += following + ([ends] if answer.finish_reason == "stop" and len(answer.ids) else [])
            said = answer.said
    if tells and said is None and len(ids) > len(start):
        raise _failed("the teacher tells nothing of the tokens that it writes, though it was asked", "see the plugin")
    return ids, expected, said


async def _scored(teacher: Teacher, ids: npt.NDArray[np.int32]) -> tuple[Signal, Signal]:
    """The whole path's answers: every row but the last, whose target is not there, and those of the first half.

    Asked together, so that the half is padded.
    """
    info = teacher.info()
    want = Want(
        top_k=min(8, info.max_top_k or info.vocab_size), temperatures=(1.0,), target="target" in info.capabilities
    )
    items = [ScoreItem(0, ids, 0, len(ids) - 1), ScoreItem(1, ids[: len(ids) // 2], 0, len(ids) // 2 - 1)]
    found: dict[int, Signal] = {}
    async with aclosing(teacher.score(items, want)) as answers:
        async for item_id, signal in answers:
            found[item_id] = signal
    for item in items:
        answer = found.get(item.item_id)
        if answer is None or answer.top_k is None or (answer.first_row, answer.n) != (item.first_row, item.n):
            raise _failed("the teacher did not answer the rows that were asked", "see the teacher's plugin")
    return found[0], found[1]


def _says(signal: Signal, row: int, allowed: Iterable[int]) -> bool:
    """Whether one of the allowed ids is the most likely of a row, or as good as. True for rows that were not asked."""
    if not 0 <= row < signal.n:
        return True
    assert signal.top_k is not None
    ids, logprobs, _ = signal.top_k.at(1.0)
    return bool(logprobs[row][np.isin(ids[row], list(allowed))].max(initial=-np.inf) >= logprobs[row].max() - NEAR)


def _differs(signal: Signal, expected: Sequence[set[int]], by: int) -> bool:
    """Whether rows shifted by `by` would contradict what is expected somewhere."""
    return any(not _says(signal, row + by, allowed) for row, allowed in enumerate(expected))


def _shift(signal: Signal, expected: Sequence[set[int]]) -> str:
    for by in (1, -1):
        if not _differs(signal, expected, by):
            return f"its rows are shifted by {by:+d}: row t must speak of token t + 1"
    return "its scores are not those of the model that writes, or a padded batch is read wrongly"


def _compare_target(signal: Signal, ids: npt.NDArray[np.int32]) -> None:
    assert signal.top_k is not None
    if signal.target is None:
        return
    support, logprobs, _ = signal.top_k.at(1.0)
    hit = support == ids[1 : signal.n + 1, None]
    rows = hit.any(axis=1)
    wrong = np.abs(logprobs[hit] - signal.target[rows]) > NEAR
    if wrong.any():
        row = int(np.flatnonzero(rows)[wrong][0])
        raise _failed(f"the target's log-probability in row {row} is not that of the next token", "see the plugin")


def _compare_said(said: Said | None, signal: Signal, ids: npt.NDArray[np.int32], start: int) -> None:
    """What was said of the tokens behind the first `start` against the scores of their rows."""
    if said is None:
        return
    assert signal.top_k is not None
    support, logprobs, _ = signal.top_k.at(1.0)
    best, told, _ = said.top_k.at(1.0)
    written = ids[start:]
    both = min(len(written), len(said.ids))
    rows = np.arange(start - 1, start - 1 + both)
    hit = support[rows] == best[:both, :1]
    scored = np.where(hit, logprobs[rows], -np.inf).max(axis=1, initial=-np.inf)
    wrong = (np.abs(scored - told[:both, 0]) > NEAR) | (said.ids[:both] != written[:both])
    if wrong.any() or len(said.ids) < len(written):
        where = f", first token {int(np.flatnonzero(wrong)[0])}" if wrong.any() else ""
        message = (
            f"what it says of the tokens that it writes is not what it scores: {int(wrong.sum())} of {both}{where}"
        )
        raise _failed(message, "row j of what was said must speak of written token j, at temperature 1; see the plugin")


def _failed(message: str, hint: str) -> LimbeckError:
    return LimbeckError(Reason.SELF_CHECK_FAILED, problems=[Problem(message, field="teacher", hint=hint)])
