"""What an API tells of the tokens that it wrote, as of the student's ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError
from limbeck.interfaces import Said, TextToken
from limbeck.signals import TopK
from limbeck.signals.topk import logsumexp, open_tail

if TYPE_CHECKING:
    from limbeck.data import Tokenizer


def said_of_tokens(
    tokens: Sequence[TextToken], tokenizer: Tokenizer, ids: npt.NDArray[np.int32], k: int | None = None
) -> Said | None:
    """What was told of `tokens`, which are to be the `ids` [n] of an answer one by one, as `k` ids a row.

    None where their bytes are not those of the ids (the API's tokenizer is another one), or where what is told cannot
    be log-probabilities. An alternative keeps its log-probability where exactly one id stands for its bytes (special
    tokens do not count); the others, and what is beyond `k` (default: the most that is told of a token), go to the
    tail. The written token is always kept. A row with fewer than `k` gets ids of which nothing was told, with the code
    of −79.998 and less: readers leave such entries to the tail, so that no probability is invented.
    """
    if len(tokens) == len(ids) + 1 and not tokens[-1].text:
        tokens = tokens[:-1]  # the end token, of which an answer's ids know nothing
    if not len(ids) or len(tokens) != len(ids):
        return None
    if any(tokenizer.token_bytes(number) != token.text for token, number in zip(tokens, ids.tolist(), strict=True)):
        return None
    if np.isnan([logprob for token in tokens for _, logprob in (*token.top, (b"", token.logprob))]).any():
        return None
    width = k or max(1, *(len(token.top) for token in tokens))
    rows = [
        _row(token, number, tokenizer.ids_by_bytes, width) for token, number in zip(tokens, ids.tolist(), strict=True)
    ]
    support = np.array([_filled(list(kept), width) for kept, _ in rows], np.int32)
    kept = _padded([list(kept.values()) for kept, _ in rows], width)
    rest = _padded([rest for _, rest in rows], max(len(rest) for _, rest in rows))
    tails = np.logaddexp(open_tail(np.concatenate([kept, rest], axis=1)), logsumexp(rest))
    try:
        top_k = TopK.from_logprobs(support, kept, tails[:, None], (1.0,))
    except LimbeckError:  # more than all of the mass
        return None
    return Said(ids, top_k, np.minimum([token.logprob for token in tokens], 0.0).astype(np.float32))


def _row(token: TextToken, written: int, known: Mapping[bytes, int], k: int) -> tuple[dict[int, float], list[float]]:
    """Log-probabilities by id, the written one first, and those that no id can have."""
    told = set(token.top)  # one that is listed twice counts once
    if all(text != token.text for text, _ in told):
        told.add((token.text, token.logprob))
    found: dict[int, float] = {}
    rest: list[float] = []
    for text, logprob in sorted(told, key=lambda entry: -entry[1]):
        number = written if text == token.text else known.get(text)
        if number is None:
            rest.append(logprob)
        else:
            found[number] = min(float(np.logaddexp(found.get(number, -np.inf), logprob)), 0.0)
    order = sorted(found, key=lambda number: (number != written, -found[number]))
    return {number: found[number] for number in order[:k]}, rest + [found[number] for number in order[k:]]


def _filled(ids: list[int], k: int) -> list[int]:
    unused = (number for number in range(2 * k) if number not in ids)
    return ids + [next(unused) for _ in range(k - len(ids))]


def _padded(rows: Sequence[Sequence[float]], width: int) -> npt.NDArray[np.float64]:
    found = np.full((len(rows), width), -np.inf)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
