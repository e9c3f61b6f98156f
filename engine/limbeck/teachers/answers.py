"""Answers of a teacher that is asked with text, on disk as they come: what stops a run costs no answer."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck.files import AppendLog, digest, read_json_lines
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt, TextToken


class Answers:
    """An append-only file of answers by prompt, item and sampling. Raises LOG_DAMAGED where it cannot be read.

    Generators hand on answers in order of position, teachers give them in any order: those that wait for an earlier
    one are in no row yet, and were paid for.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self.repaired = self._log.repaired
        self._known = {str(line["key"]): _completion(line) for _, line in read_json_lines(path)}

    def get(self, prompt: TextPrompt, sampling: Sampling) -> TextCompletion | None:
        """The answer to this very question, None where it was not given yet."""
        return self._known.get(_key(prompt, sampling))

    def add(self, prompt: TextPrompt, sampling: Sampling, answer: TextCompletion) -> None:
        """Keep an answer; it is on disk when this returns. Raises DISK_FULL."""
        key = _key(prompt, sampling)
        self._log.append({"key": key, **_line(answer)})
        self._known[key] = answer

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()


def _key(prompt: TextPrompt, sampling: Sampling) -> str:
    return digest([prompt.item_id, prompt.prompt, asdict(sampling)])


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
