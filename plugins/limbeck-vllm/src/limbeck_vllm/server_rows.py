"""Numbers of a server on their way to signals and completions, checked one by one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from limbeck.interfaces import Completion, Prompt, Said, Sampling, ScoreItem, Want
from limbeck.signals import Signal, TopK
from limbeck_vllm.server_tries import WrongAnswer

NOTHING = -9999.0  # stands for −inf, which JSON has not
Best = Sequence[tuple[int, Any]]  # ids with their log-probabilities


class Rows:
    """Rows of one sequence as they come in: `ids` and `logprobs` [n, k], `target` [n]."""

    def __init__(self, n: int, k: int, vocab_size: int) -> None:
        self.ids = np.empty((n, k), np.int32)
        self.logprobs = np.empty((n, k), np.float32)
        self.target = np.empty(n, np.float32)
        self.n, self.k, self._vocab_size = n, k, vocab_size

    def put(self, at: int, best: Best, target: Any = None) -> None:
        """Row `at`: its k best in any order, and the token that stands there."""
        if len(best) != self.k:
            raise WrongAnswer(f"it gives {len(best)} ids of {self.k} for a position")
        if self.k:
            self.ids[at] = checked([token for token, _ in best], self._vocab_size)
            self.logprobs[at] = [_number(value) for _, value in best]
        if target is not None:
            self.target[at] = _number(target)

    def signal(self, item: ScoreItem, want: Want) -> Signal:
        """The answer to an item. Raises SIGNAL_INVALID where the numbers are no log-probabilities."""
        top_k = TopK.without_tail(self.ids, self.logprobs) if want.top_k else None
        return Signal(item.first_row, item.n, top_k=top_k, target=self.target if want.target else None)


def best_of(entries: Best, k: int) -> Best:
    """The k best of entries among which a token may be that is none of them."""
    return entries if len(entries) <= k else sorted(entries, key=lambda entry: -_number(entry[1]))[:k]


def completion(
    prompt: Prompt,
    ids: list[int],
    finish: Any,
    sampling: Sampling,
    ends: Collection[int],
    rows: Rows | None = None,
) -> Completion:
    """The text of `ids`, the end token among them, and what `rows` say of each. `ends`: every token that is an end.

    Raises WrongAnswer where the server did not write what it was asked for, SIGNAL_INVALID.
    """
    if finish == "stop":
        if not ids or ids[-1] not in ends:
            raise WrongAnswer(f"it ended the text with {ids[-1:]}, which is no end token of `tokenizer`")
    elif finish != "length":
        raise WrongAnswer(f"it ended the text by itself ({finish!r})")
    elif len(ids) != sampling.max_new_tokens:
        raise WrongAnswer(
            f"it wrote {len(ids)} tokens of {sampling.max_new_tokens}: its generation config has max_new_tokens; "
            "start it with --generation-config vllm"
        )
    text = ids[:-1] if finish == "stop" else ids
    if behind := set(ends) & set(text):
        raise WrongAnswer(f"it went on behind an end token ({min(behind)})")
    said = None
    if rows is not None:
        said = Said(np.array(ids, np.int32), TopK.without_tail(rows.ids, rows.logprobs), rows.target)
    return Completion(prompt.item_id, np.array(text, np.int32), "stop" if finish == "stop" else "length", said)


def checked(ids: list[int], vocab_size: int) -> list[int]:
    """The same ids. Raises WrongAnswer where one is outside of the vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        bad = max(ids) if min(ids) >= 0 else min(ids)
        raise WrongAnswer(
            f"it answers id {bad} of a vocabulary of {vocab_size:,}: `tokenizer` is not that of the served model"
        )
    return ids


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or math.isnan(value):
        raise WrongAnswer(f"a log-probability is {value!r}: the model's numbers are not finite")
    return -math.inf if value <= NOTHING else float(value)


def seed_of(seed: int, item_id: int, bits: int) -> int:
    """A number of so many bits, so that a draw depends on (seed, item) alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item_id}".encode()).digest()[:8], "big") >> (64 - bits)
