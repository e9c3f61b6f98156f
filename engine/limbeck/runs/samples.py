"""A few texts of a run as events, so that a person sees early what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.v1.event_pb2 import Sample

SAMPLES = 3  # of a stage and a model
MOST_CHARACTERS = 2000


def sample(model: str, prompt: str, text: str) -> Sample:
    """The event; of a long prompt the end is kept, of a long text the beginning."""
    prompt = prompt if len(prompt) <= MOST_CHARACTERS else "…" + prompt[1 - MOST_CHARACTERS :]
    text = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    return Sample(model=model, prompt=_valid(prompt), text=_valid(text))


def of_row(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what was asked, what was answered) of a row of any format, None where it holds no such texts."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        *before, last = messages
        asked = _content(before[-1]) if before else ""
        answered = _content(last)
    else:
        asked = row.get("prompt", "")
        answered = next((row[key] for key in ("completion", "chosen", "text") if key in row), None)
    if isinstance(answered, list) and answered:  # a conversation: its last message
        answered = _content(answered[-1])
    if isinstance(asked, list) and asked:
        asked = _content(asked[-1])
    return (asked, answered) if isinstance(asked, str) and isinstance(answered, str) else None


def _content(message: Any) -> Any:
    """Of a message as a plugin made it, which nobody has looked at yet."""
    return message.get("content") if isinstance(message, Mapping) else None


def _valid(text: str) -> str:
    """Protobuf takes no half of a surrogate pair."""
    return text.encode(errors="replace").decode()
