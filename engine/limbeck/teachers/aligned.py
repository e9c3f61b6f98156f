"""What an API tells of the tokens that it wrote, as of the student's ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.interfaces import Said, TextCompletion, TextToken
from limbeck.signals import TopK
from limbeck.signals.topk import open_tail

if TYPE_CHECKING:
    from limbeck.data import Tokenizer


def said_of(answer: TextCompletion, prompt: str | list[dict[str, Any]], tokenizer: Tokenizer, k: int) -> Said | None:
    """The `k` likeliest ids of each token of an answer; None where its tokens are not those that the student reads.

    Alternatives that are no token of the student count to the tail. Where fewer than `k` are left, ids of which nothing
    was told fill the row, each with the even share of the tail that an id outside gets.
    """
    from limbeck.data import answer_ids

    ids = answer_ids(prompt, answer.text, answer.finish_reason, tokenizer)
    words = _words(tokenizer)
    tokens = answer.tokens or ()
    if ids is None or not len(ids) or len(ids) != len(tokens):
        return None
    if any(words.get(token.text) != number for token, number in zip(tokens, ids.tolist(), strict=True)):
        return None
    rows = [_row(token, words, tokenizer.vocab_size, k) for token in tokens]
    support = np.array([row[0] for row in rows], np.int32)
    logprobs = np.array([row[1] for row in rows], np.float64)
    target = np.minimum([token.logprob for token in tokens], 0.0).astype(np.float32)
    return Said(ids, TopK.without_tail(support, logprobs), target)


def _row(token: TextToken, words: dict[bytes, int], vocab_size: int, k: int) -> tuple[list[int], list[float]]:
    found: dict[int, float] = {}
    for text, logprob in token.top:
        number = words.get(text)
        if number is not None and len(found) < k:
            found.setdefault(number, min(logprob, 0.0))
    missing = k - len(found)
    if missing:
        tail = float(open_tail(np.array([list(found.values())], np.float64).reshape(1, -1))[0])
        share = tail - float(np.log(max(vocab_size - len(found), missing + 1)))
        fill = (number for number in range(vocab_size) if number not in found)
        found |= {next(fill): share for _ in range(missing)}
    return list(found), list(found.values())


@lru_cache(maxsize=2)
def _words(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The student's ids by the bytes that they stand for; where several do, a whole word before a lone byte."""
    numbers: Sequence[int] = range(tokenizer.vocab_size)
    spelled = [(tokenizer.token_bytes(number), tokenizer.token_text(number), number) for number in numbers]
    found: dict[bytes, int] = {}
    for raw, _, number in sorted(spelled, key=lambda item: (item[1].startswith("<0x"), item[2])):
        found.setdefault(raw, number)
    return found
