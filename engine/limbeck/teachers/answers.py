"""Answers of a teacher that is asked with text, on disk as they come: what stops a run costs no answer."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck.files import AppendLog, digest, placed_json_lines
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt, TextToken


class Answers:
    """An append-only file of answers by prompt, item and sampling. Raises LOG_DAMAGED where it cannot be read.

    Generators hand on answers in order of position, teachers give them in any order: those that wait for an earlier
    one are in no row yet, and were paid for. With `again`, prompts that got no answer (``failed``) are asked again.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self._path, self._log = path, AppendLog(path)
        self.repaired = self._log.repaired
        self._places: dict[str, tuple[int, int]] = {}  # of the lines: answers with tokens are large
        self._tokens: list[tuple[int, int]] = []
        for place, line in placed_json_lines(path):
            self._tokens.append(_counts(line["lineage"]))
            self._places[str(line["key"])] = (int(line.get("logprobs", 0)), place)
            if again and str(line["rejected"]).startswith("failed"):
                del self._places[line["key"]]

    @property
    def tokens(self) -> Sequence[tuple[int, int]]:
        """Tokens read and written for each answer that was kept, in order, 0 where nobody said."""
        return self._tokens

    def get(self, prompt: TextPrompt, sampling: Sampling) -> TextCompletion | None:
        """The answer to this question, None where it was not given yet, or without all likeliest tokens asked now."""
        told, place = self._places.get(_key(prompt, sampling), (-1, 0))
        if told < sampling.logprobs:
            return None
        with self._path.open("rb") as file:
            file.seek(place)
            return _completion(json.loads(file.readline()))

    def add(self, prompt: TextPrompt, sampling: Sampling, answer: TextCompletion) -> None:
        """Keep an answer; it is on disk when this returns. Raises DISK_FULL."""
        key, place = _key(prompt, sampling), self._path.stat().st_size
        self._log.append({"key": key, "logprobs": sampling.logprobs, **_line(answer)})
        self._places[key] = (sampling.logprobs, place)
        self._tokens.append(_counts(answer.lineage))

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()


def _key(prompt: TextPrompt, sampling: Sampling) -> str:
    draw = [sampling.seed, prompt.item_id] if sampling.temperature else []  # a greedy text is no draw
    return digest([prompt.prompt, {**asdict(sampling), "seed": None, "logprobs": None}, draw])


def _counts(lineage: Mapping[str, Any]) -> tuple[int, int]:
    read, written = (lineage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return int(read or 0), int(written or 0)


def _line(answer: TextCompletion) -> dict[str, Any]:
    tokens = None
    if answer.tokens is not None:
        tokens = [[_text(t.text), t.logprob, [[_text(text), p] for text, p in t.top]] for t in answer.tokens]
    return {
        "item_id": answer.item_id,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "rejected": answer.rejected,
        "tokens": tokens,
        "lineage": answer.lineage,
    }


def _completion(line: dict[str, Any]) -> TextCompletion:
    tokens = None
    if line["tokens"] is not None:
        tokens = tuple(
            TextToken(b64decode(text), logprob, tuple((b64decode(other), p) for other, p in top))
            for text, logprob, top in line["tokens"]
        )
    named = {name: line[name] for name in ("item_id", "text", "finish_reason", "rejected", "lineage")}
    return TextCompletion(**named, tokens=tokens)


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()
