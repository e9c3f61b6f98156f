"""The rationale in an answer, what stands between <think> and </think>: found, dropped, or told apart by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from limbeck.data.rows import Row
    from limbeck.data.tokenizer import Piece, Tokenizer

ANSWERS = ("completion", "chosen", "rejected")


def spans(answer: str, tag: str) -> list[tuple[int, int]]:
    """Where the rationale of an answer is: (start, stop) in characters, tags included, in order.

    From an opening tag to the first closing one behind it; to the end of the answer where there is none (it was cut).
    An answer whose first tag is a closing one begins inside: its prompt ended with the opening tag.
    """
    found: list[tuple[int, int]] = []
    tags = list(re.finditer(f"<(/?){re.escape(tag)}>", answer))
    start = 0 if tags and tags[0][1] else None
    for match in tags:
        if not match[1]:
            start = match.start() if start is None else start
        elif start is not None:
            found.append((start, match.end()))
            start = None
    return found if start is None else [*found, (start, len(answer))]


def without(answer: str, tag: str) -> str:
    """An answer without its rationale, tags, and the white space that stood around it; between words one is left."""
    kept, place = "", 0
    for start, stop in spans(answer, tag):
        kept = _joined(kept, answer[place:start])
        place = stop
    if not place:
        return answer
    rest = answer[place:]
    return _joined(kept, rest) if rest.strip() else kept.rstrip()


def _joined(before: str, after: str) -> str:
    return before + (after.lstrip() if not before or before[-1].isspace() else after)


def dropped(row: Row, tag: str) -> tuple[Row, str | None]:
    """A row whose trained answers are without their rationale, and the field of one that has nothing left."""
    value: dict[str, Any] = dict(row.value)
    emptied: str | None = None

    def bare(text: str, field: str) -> str:
        nonlocal emptied
        kept = without(text, tag)
        if text.strip() and not kept.strip():
            emptied = emptied or field
        return kept

    for key in ANSWERS:
        answer = value.get(key)
        if isinstance(answer, str):
            value[key] = bare(answer, key)
        elif answer is not None:
            value[key] = [{**answer[0], "content": bare(answer[0]["content"], key)}]
    if row.format == "messages":
        value["messages"] = [
            {**message, "content": bare(message["content"], f"messages[{index}].content")}
            if message["role"] == "assistant" and message.get("weight", 1)
            else message
            for index, message in enumerate(value["messages"])
        ]
    return (row if value == row.value else replace(row, value=value)), emptied


def inside(
    pieces: Sequence[Piece], tag: str, tokenizer: Tokenizer, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Which tokens [t] belong to the rationale of a trained answer: those whose first byte is in it.

    `ids` and `offsets` are what :meth:`Tokenizer.encode` gave for the `pieces`. A control token belongs to it where it
    stands in it, as the end token of an answer that never closes its rationale does.
    """
    size = sum(len(piece.text.encode()) for piece in pieces if piece.control is None)
    bytes_in = np.zeros(size + 1, np.bool_)
    controls_in: list[bool] = []
    start = 0  # byte where the piece begins
    for trained, run in groupby(pieces, key=lambda piece: piece.trained):
        group = list(run)
        found = spans("".join(piece.text for piece in group), tag) if trained else []
        place = 0  # character of the run
        for piece in group:
            end = place + len(piece.text)
            if piece.control is not None:
                controls_in.append(any(low <= place < high for low, high in found))
                place = end
                continue
            for low, high in found:
                low, high = (min(max(edge, place), end) - place for edge in (low, high))
                bytes_in[start + len(piece.text[:low].encode()) : start + len(piece.text[:high].encode())] = True
            start += len(piece.text.encode())
            place = end
    controls = [
        token
        for token, (number, ends) in enumerate(zip(ids.tolist(), offsets.tolist(), strict=True))
        if ends == [0, 0] and tokenizer.is_control(number)
    ][int(tokenizer.bos_id is not None) :]
    result: npt.NDArray[np.bool_] = bytes_in[offsets[:, 0]]
    result[: int(tokenizer.bos_id is not None)] = False
    result[controls] = controls_in
    return result
