"""Sequences as a person reads them: which tokens are trained, which are control tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from limbeck.data.sequence import TokenSequence
from limbeck.data.tokenizer import Tokenizer

OPEN, CLOSE = "⟦", "⟧"
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True, slots=True)
class Part:
    """A run of tokens of one kind. `text` as it is shown; `control`: one control token."""

    text: str
    trained: bool
    control: bool


def parts(tokenizer: Tokenizer, sequence: TokenSequence) -> list[Part]:
    """Runs of tokens of one kind. In plain text, what spells a control token, or is no visible sign, is escaped."""
    tokens = list(zip(sequence.ids.tolist(), sequence.trained.tolist(), strict=True))
    found: list[Part] = []
    for (trained, control), run in groupby(tokens, key=lambda token: (token[1], tokenizer.is_control(token[0]))):
        ids = [number for number, _ in run]
        if control:
            found += [Part(tokenizer.token_text(number), trained, True) for number in ids]
        else:
            found.append(Part(_plain(tokenizer, ids), trained, False))
    return found


def trained_texts(tokenizer: Tokenizer, sequence: TokenSequence) -> list[str]:
    """The text of each unbroken run of trained tokens, control tokens spelled."""
    runs = groupby(parts(tokenizer, sequence), key=lambda part: part.trained)
    return ["".join(part.text for part in run) for trained, run in runs if trained]


def bracketed(found: list[Part]) -> str:
    """Parts as plain text, each trained run between ⟦ and ⟧."""
    text = ""
    for trained, run in groupby(found, key=lambda part: part.trained):
        piece = "".join(part.text for part in run)
        text += f"{OPEN}{piece}{CLOSE}" if trained else piece
    return text


def _plain(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = tokenizer.escape(tokenizer.decode(ids))
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)
