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
    """A run of tokens of one kind. `text` as it is shown; `control`: one control token; `weight` of trained tokens."""

    text: str
    trained: bool
    control: bool
    weight: float = 1.0


def parts(tokenizer: Tokenizer, sequence: TokenSequence) -> list[Part]:
    """Runs of tokens of one kind. In plain text, what spells a control token, or is no visible sign, is escaped."""
    weights = [1.0] * len(sequence.ids) if sequence.weights is None else sequence.weights.tolist()
    weighed = [weight * trained for weight, trained in zip(weights, sequence.trained.tolist(), strict=True)]
    tokens = list(zip(sequence.ids.tolist(), weighed, strict=True))
    found: list[Part] = []
    for (weight, control), run in groupby(tokens, key=lambda token: (token[1], tokenizer.is_control(token[0]))):
        ids = [number for number, _ in run]
        kind = (weight > 0, control, weight or 1.0)
        if control:
            found += [Part(tokenizer.token_text(number), *kind) for number in ids]
        else:
            found.append(Part(_plain(tokenizer, ids), *kind))
    return found


def trained_texts(tokenizer: Tokenizer, sequence: TokenSequence) -> list[str]:
    """The text of each unbroken run of trained tokens, control tokens spelled."""
    runs = groupby(parts(tokenizer, sequence), key=lambda part: part.trained)
    return ["".join(part.text for part in run) for trained, run in runs if trained]


def bracketed(found: list[Part]) -> str:
    """Parts as plain text, each trained run of one weight between ⟦ and ⟧; a weight that is not 1 leads it: ⟦0.3×…⟧."""
    text = ""
    for (trained, weight), run in groupby(found, key=lambda part: (part.trained, part.weight)):
        piece = "".join(part.text for part in run)
        told = "" if weight == 1 else f"{weight:g}×"
        text += f"{OPEN}{told}{piece}{CLOSE}" if trained else piece
    return text


def _plain(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = tokenizer.escape(tokenizer.decode(ids))
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)
