"""Byte ranges of tokens. Tokenizers give characters, and tokens of one character may share it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def byte_ranges(
    text: str, tokens: Sequence[str], chars: Sequence[tuple[int, int]], *, byte_level: bool
) -> list[tuple[int, int]]:
    """The byte range (start, stop) of each token in `text` as UTF-8.

    `tokens`: their spelling in the vocabulary; `chars`: their character ranges. Where the spellings tell the bytes
    (byte-level BPE, SentencePiece with byte fallback) and these are the text's, ranges are exact and lie end to end.
    Elsewhere (a normaliser changed the text) they follow the characters; tokens of one character divide its bytes.
    """
    raw = text.encode()
    pieces = [spelled_bytes(token, byte_level=byte_level) for token in tokens]
    joined = b"".join(pieces)
    put = joined == b" " + raw  # a space that the tokenizer put before the text
    if joined == raw or put:
        place = -1 if put else 0
        ranges = []
        for piece in pieces:
            ranges.append((max(place, 0), place + len(piece)))
            place += len(piece)
        return ranges
    return _by_characters(text, chars)


def spelled_bytes(token: str, *, byte_level: bool) -> bytes:
    """The bytes that a token of this spelling stands for."""
    return _byte_level(token) if byte_level else _sentence_piece(token)


def is_lone_byte(token: str) -> bool:
    """Whether a token of SentencePiece's kind is spelled as one byte: ``<0x0A>``."""
    return _BYTE.fullmatch(token) is not None


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's table: the printable character of each byte, reversed."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    alphabet = _alphabet()
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # an added token is spelled as it is
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    return bytes([int(token[3:5], 16)]) if _BYTE.fullmatch(token) else token.replace("▁", " ").encode()


def _by_characters(text: str, chars: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    places = [0]
    for char in text:
        places.append(places[-1] + len(char.encode()))
    ranges: list[tuple[int, int]] = []
    end = 0
    for index, (low, high) in enumerate(chars):
        start, stop = max(places[low], end), places[high]
        shared = sum(1 for later in chars[index + 1 :] if later[0] < high) if start < stop else 0
        if shared:  # leave a byte to each token that has a part of the same characters
            stop = max(start + 1, stop - shared)
        ranges.append((min(start, stop), stop))
        end = max(end, stop)
    return ranges
