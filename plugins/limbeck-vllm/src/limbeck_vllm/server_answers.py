"""The JSON of vLLM's completions endpoint. Entry 0 of `prompt_logprobs` is null, entry j speaks of token j.

An entry maps ids, as text, to {logprob, rank, decoded_token}: the k best with ranks 1 … k, and the token that stands
there with the rank that it has. −9999 stands for −inf, null for what is no number.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from limbeck.interfaces import ScoreItem
from limbeck_vllm.server_rows import Rows, best_of
from limbeck_vllm.server_tries import WrongAnswer

_ENTRIES = re.compile(r'"prompt_logprobs"\s*:\s*\[')  # cannot stand inside of a JSON text: its quotes would be \"
_NEXT = re.compile(r"\s*(,|\])\s*")
_DECODER = json.JSONDecoder()


class Entries:
    """Reads the rows of an item from a body as it comes in, and keeps no more of it.

    A body of a long sequence has tens of megabytes, as Python's objects hundreds; the numbers in it are a tenth.
    """

    def __init__(self, item: ScoreItem, rows: Rows) -> None:
        self._item, self._rows = item, rows

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
            self._put(entry, found)
            entry, place = entry + 1, mark.end()
            if mark[1] == "]":
                return text[place:], entry, True

    def _put(self, position: int, entry: Any) -> None:
        at = position - 1 - self._item.first_row
        if not 0 <= at < self._item.n or position >= len(self._item.ids):
            return
        try:
            best = [(int(name), said["logprob"]) for name, said in entry.items() if said["rank"] <= self._rows.k]
            target = entry[str(int(self._item.ids[position]))]["logprob"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WrongAnswer(f"what it says of position {position} cannot be read ({error!r})") from None
        self._rows.put(at, best, float("nan") if target is None else target)


def choice_of(answer: Any) -> dict[str, Any]:
    """The one choice of an answer. Raises WrongAnswer."""
    try:
        (choice,) = answer["choices"]
        return dict(choice)
    except (KeyError, TypeError, ValueError):
        raise WrongAnswer("its answer has not the one choice that was asked for: is it a vLLM server?") from None


def ids_of(choice: Mapping[str, Any]) -> list[int]:
    """The written ids, the end token among them. Raises WrongAnswer."""
    try:
        return [int(token) for token in choice["token_ids"]]
    except (KeyError, TypeError, ValueError):
        raise WrongAnswer("its answer holds no token_ids: is it a vLLM server?") from None


def written(choice: Mapping[str, Any], rows: Rows, start: int = 0) -> None:
    """Put what is said of the written tokens in `rows`, the first of them at `start`. Raises WrongAnswer."""
    try:
        targets, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        if len(tops) != rows.n - start:
            raise WrongAnswer(f"it tells log-probabilities of {len(tops)} tokens of {rows.n - start}")
        entries = [[(int(name.removeprefix("token_id:")), value) for name, value in top.items()] for top in tops]
        for at, (top, target) in enumerate(zip(entries, targets, strict=True), start):
            rows.put(at, best_of(top, rows.k), float("nan") if target is None else target)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WrongAnswer(f"what it says of the written tokens cannot be read ({error!r})") from None
