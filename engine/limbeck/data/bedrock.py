"""Rows in the conversation format of Amazon Bedrock's distillation, turned into chat messages."""

from __future__ import annotations

from typing import Any

from limbeck.data.lines import kind_of
from limbeck.errors import Problem, nearest

SCHEMA = "bedrock-conversation-2024"
_KEYS = ("schemaVersion", "system", "messages")


def is_bedrock(value: dict[str, Any]) -> bool:
    """Whether a row says, or nearly says, that it is a Bedrock conversation."""
    return any(nearest(key, ("schemaVersion",)) for key in value if isinstance(key, str) and len(key) > 8)


def from_bedrock(value: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The same row as ``{"messages": …}`` with string contents, and its problems (without a place)."""
    problems: list[Problem] = []
    for key in value:
        if key not in _KEYS:
            meant = nearest(key, _KEYS)
            hint = f"did you mean {meant}?" if meant else f"allowed: {', '.join(_KEYS)}"
            problems.append(Problem("unknown key in a Bedrock conversation", field=key, hint=hint))
    version = value.get("schemaVersion", SCHEMA)
    if version != SCHEMA:
        meant = nearest(version, (SCHEMA,)) if isinstance(version, str) else None
        hint = f"did you mean {SCHEMA}?" if meant else f"the only one that is known is {SCHEMA}"
        problems.append(Problem(f"{version!r} is not a known version", field="schemaVersion", hint=hint))
    messages: list[dict[str, Any]] = []
    if "system" in value:
        messages.append({"role": "system", "content": _text(value["system"], "system", problems)})
    turns = value.get("messages")
    if not isinstance(turns, list):
        what = "is missing" if "messages" not in value else f"must be a list of messages, not {kind_of(turns)}"
        problems.append(Problem(what, field="messages"))
        turns = []
    for index, turn in enumerate(turns):
        field = f"messages[{index}]"
        if not isinstance(turn, dict):
            problems.append(Problem(f"must be an object, not {kind_of(turn)}", field=field))
            continue
        content = _text(turn.get("content"), f"{field}.content", problems)
        messages.append({**turn, "content": content})
    return {"messages": messages}, problems


def _text(parts: Any, field: str, problems: list[Problem]) -> str:
    if not isinstance(parts, list):
        problems.append(Problem(f'must be a list of {{"text": …}}, not {kind_of(parts)}', field=field))
        return ""
    texts: list[str] = []
    for index, part in enumerate(parts):
        if isinstance(part, dict) and part.keys() == {"text"} and isinstance(part["text"], str):
            texts.append(part["text"])
        else:
            problems.append(Problem('must be {"text": …} with a string: only text is read', field=f"{field}[{index}]"))
    return "".join(texts)
