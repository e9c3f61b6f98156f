"""What vLLM's completions endpoint answers, as signals and completions. Pure functions but for the reading.

Entry 0 of `prompt_logprobs` is null, entry j speaks of token j: it is the signal's row j − 1. An entry maps ids, as
text, to {logprob, rank, decoded_token}: the k best with ranks 1 … k, and the token that stands there with the rank
that it has. −9999 stands for −inf, null for what is not a number.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.interfaces import Completion, Prompt, Said, Sampling, ScoreItem, Want
from limbeck.signals import Signal, TopK
from limbeck_vllm.server_http import WrongAnswer

NOTHING = -9999.0  # stands for −inf, which JSON has not
_ENTRIES = re.compile(r'"prompt_logprobs"\s*:\s*\[')  # cannot stand inside of a JSON text: its quotes would be \"
_NEXT = re.compile(r"\s*(,|\])\s*")
_DECODER = json.JSONDecoder()


class Rows:
    """The rows of one item as they come in: `ids` and `logprobs` [n, k], `target` [n]. No more of a body is kept.

    A body of a long sequence has tens of megabytes, of which the numbers here are a tenth.
    """

    def __init__(self, item: ScoreItem, k: int, vocab_size: int) -> None:
        self.ids = np.empty((item.n, k), np.int32)
        self.logprobs = np.empty((item.n, k), np.float32)
        self.target = np.empty(item.n, np.float32)
        self._item, self._k, self._vocab_size = item, k, vocab_size

    async def read(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Take in a body; returns it without the entries. Raises ValueError where it is cut, WrongAnswer."""
        decode = codecs.getincrementaldecoder("utf-8")().decode
        head, text, entry = "", "", -1  # −1: the entries have not begun
        closed = False
        async for chunk in chunks:
            text += decode(chunk)
            if entry < 0 and (found := _ENTRIES.search(text)):
                head, text, entry = text[: found.end()], text[found.end() :], 0
            if entry >= 0 and not closed:
                text, entry, closed = self._take(text, entry)
        body = json.loads(head + "]" + text if closed else text if entry < 0 else head)
        if not closed:
            raise WrongAnswer("its answer has no prompt_logprobs: is it a vLLM server?")
        if entry != len(self._item.ids):
            raise WrongAnswer(f"it answers {entry:,} positions of {len(self._item.ids):,}")
        return body if isinstance(body, dict) else {}

    def _take(self, text: str, entry: int) -> tuple[str, int, bool]:
        """Take in whole entries from the start of `text`: what is left, the next entry, and whether there is none."""
        text, place = text.lstrip(), 0
        while True:
            try:
                found, end = _DECODER.raw_decode(text, place)
            except ValueError:  # more of it is to come
                return text[place:], entry, False
            mark = _NEXT.match(text, end)
            if mark is None:
                return text[place:], entry, False
            self._put(entry - 1, found)
            entry, place = entry + 1, mark.end()
            if mark[1] == "]":
                return text[place:], entry, True

    def _put(self, row: int, entry: Any) -> None:
        at = row - self._item.first_row
        if not 0 <= at < self._item.n:
            return
        if not isinstance(entry, dict) or row + 1 >= len(self._item.ids):
            raise WrongAnswer(f"it says nothing of position {row + 1}")
        token = int(self._item.ids[row + 1])
        try:
            best = [(int(name), said["logprob"]) for name, said in entry.items() if said["rank"] <= self._k]
            target = entry[str(token)]["logprob"]
        except (KeyError, TypeError, ValueError) as error:
            raise WrongAnswer(f"what it says of position {row + 1} cannot be read ({error!r})") from None
        self.target[at] = _number(target, row)
        self.put(at, row, best)

    def put(self, at: int, row: int, best: list[tuple[int, Any]]) -> None:
        """Row `at` of the answer, row `row` of the sequence."""
        if len(best) != self._k:
            raise WrongAnswer(f"it gives {len(best)} ids of {self._k} for position {row + 1}")
        if self._k:
            self.ids[at] = _checked([token for token, _ in best], self._vocab_size)
            self.logprobs[at] = [_number(value, row) for _, value in best]

    def signal(self, want: Want) -> Signal:
        """The answer. Raises SIGNAL_INVALID where the numbers are no log-probabilities."""
        top_k = TopK.without_tail(self.ids, self.logprobs) if want.top_k else None
        return Signal(self._item.first_row, self._item.n, top_k=top_k, target=self.target if want.target else None)


def written(
    choice: Mapping[str, Any], k: int
) -> tuple[list[int], npt.NDArray[np.float32], list[list[tuple[int, Any]]]]:
    """What was written: ids, their log-probabilities [n], and the k best of each as (id, log-probability)."""
    try:
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = choice["logprobs"]
        targets = [_number(value, row) for row, value in enumerate(logprobs["token_logprobs"])]
        best = [
            _best([(_id(name), value) for name, value in top.items()], token, k)
            for token, top in zip(ids, logprobs["top_logprobs"], strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongAnswer(f"what it says of the written tokens cannot be read ({error!r})") from None
    if len(targets) != len(ids):
        raise WrongAnswer(f"it tells log-probabilities of {len(targets)} tokens of {len(ids)}")
    return ids, np.array(targets, np.float32), best


def completion(
    prompt: Prompt, choice: Mapping[str, Any], sampling: Sampling, ends: frozenset[int], vocab_size: int
) -> Completion:
    """One text. Raises WrongAnswer where the server did not write what it was asked for."""
    try:
        ids = _checked([int(token) for token in choice["token_ids"]], vocab_size)
        finish = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAnswer(f"its answer holds no token_ids ({error!r}): is it a vLLM server?") from None
    if finish == "stop":
        # the last token is the end; the server may know more of these (its generation config) and tells of it
        if not ids or not (ids[-1] in ends or ids[-1] == choice.get("stop_reason")):
            raise WrongAnswer(f"it ended the text with {ids[-1:]}, which is no end token of `tokenizer`")
    elif finish != "length":
        raise WrongAnswer(f"it ended the text by itself ({finish!r})")
    elif len(ids) != sampling.max_new_tokens:
        raise WrongAnswer(
            f"it wrote {len(ids)} tokens of {sampling.max_new_tokens}: its generation config has max_new_tokens; "
            "start it with --generation-config vllm"
        )
    text = np.array(ids[:-1] if finish == "stop" else ids, np.int32)
    if ends & set(text.tolist()):
        raise WrongAnswer(f"it went on behind an end token ({sorted(ends & set(text.tolist()))[0]})")
    said = None
    if sampling.logprobs:
        rows = Rows(ScoreItem(prompt.item_id, prompt.ids, 0, len(ids)), sampling.logprobs, vocab_size)
        _, target, best = written(choice, sampling.logprobs)
        for at, row in enumerate(best):
            rows.put(at, at, row)
        said = Said(np.array(ids, np.int32), TopK.without_tail(rows.ids, rows.logprobs), target)
    return Completion(prompt.item_id, text, finish, said)


def _best(entries: list[tuple[int, Any]], token: int, k: int) -> list[tuple[int, Any]]:
    """The k best of one position: the written token comes on top where it is not among them."""
    return entries if len(entries) <= k else [entry for entry in entries if entry[0] != token]


def _id(name: str) -> int:
    """The id of `token_id:17`, as tokens are named where the request asks for it."""
    return int(name.removeprefix("token_id:"))


def _checked(ids: list[int], vocab_size: int) -> list[int]:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        bad = max(ids) if min(ids) >= 0 else min(ids)
        raise WrongAnswer(
            f"it answers id {bad} of a vocabulary of {vocab_size:,}: `tokenizer` is not that of the served model"
        )
    return ids


def _number(value: Any, row: int) -> float:
    if not isinstance(value, int | float) or math.isnan(value):
        raise WrongAnswer(f"a log-probability of position {row + 1} is {value!r}: the model's numbers are not finite")
    return -math.inf if value <= NOTHING else float(value)
