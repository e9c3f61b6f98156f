"""Rows: what a line of a data file may be, and everything that may be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.data.bedrock import from_bedrock, is_bedrock
from limbeck.data.lines import kind_of, read_lines
from limbeck.errors import Problem, nearest

RowFormat = Literal["prompt", "completion", "text", "messages", "preference"]
Message = dict[str, Any]

# Keys of each format, and those that any row may carry without effect.
KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "prompt": ("prompt",),
}
NOTES = ("id", "metadata", "source", "lineage")
_EVERY_KEY = tuple(dict.fromkeys(key for keys in KEYS.values() for key in keys))
ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "weight", "name", "tool_call_id")
# What other tools call our keys.
_ALIASES = {
    "conversations": "messages",
    "conversation": "messages",
    "dialog": "messages",
    "dialogue": "messages",
    "instruction": "prompt",
    "question": "prompt",
    "input": "prompt",
    "query": "prompt",
    "response": "completion",
    "output": "completion",
    "answer": "completion",
    "target": "completion",
    "from": "role",
    "value": "content",
    "train": "weight",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row. `source` and `line` (from 1): where it was read. `value`: the JSON object, in a known format."""

    source: str
    line: int
    value: dict[str, Any]
    format: RowFormat


def read_rows(paths: Sequence[Path]) -> tuple[list[Row], list[Problem]]:
    """Every valid row of JSON Lines files, in order, and every problem of the others. Raises nothing.

    A folder stands for its ``*.jsonl`` files in the order of their names. Rows of several formats may share a file.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        found = 0
        for file in files:
            for line, value, faults in read_lines(file):
                found += 1
                format_: RowFormat | None = None
                if value is not None:
                    value, format_, more = check_value(value)
                    faults = faults + [
                        Problem(p.message, file=str(file), line=line, field=p.field, hint=p.hint) for p in more
                    ]
                problems += faults
                if not faults and value is not None and format_ is not None:
                    rows.append(Row(str(file), line, value, format_))
        if not found:
            what = "no *.jsonl file with rows in this folder" if path.is_dir() else "no rows in this file"
            problems.append(Problem(what, file=str(path)))
    return rows, problems


def check_value(value: dict[str, Any]) -> tuple[dict[str, Any], RowFormat | None, list[Problem]]:
    """A row's object in Limbeck's own form, its format (None where no key tells) and its problems, without a place."""
    problems: list[Problem] = []
    if is_bedrock(value):
        value, problems = from_bedrock(value)
        if problems:
            return value, None, problems
    format_ = _format(value, problems)
    if format_ is None:
        return value, None, problems
    keys = KEYS[format_] + (("finish_reason",) if format_ in ("completion", "messages") else ())
    for key in value:
        if key not in keys and key not in NOTES:
            problems.append(_unknown(key, key, (*keys, *NOTES), f"in a row with {_listed(KEYS[format_])}", _EVERY_KEY))
    _check_fields(value, format_, problems)
    if format_ == "messages" and not problems:
        roles = [message["role"] for message in value["messages"]]
        format_ = "messages" if "assistant" in roles else "prompt"
    return value, format_, problems


def _format(value: dict[str, Any], problems: list[Problem]) -> RowFormat | None:
    if not value:
        problems.append(Problem("the object is empty", hint=_FORMATS))
        return None
    leads: list[str] = [key for key in ("text", "messages") if key in value]
    if {"prompt", "completion", "chosen", "rejected"} & value.keys():
        leads.append("prompt")
    if len(leads) > 1 or ("completion" in value and {"chosen", "rejected"} & value.keys()):
        mixed = [key for key in ("text", "messages", "prompt", "completion", "chosen", "rejected") if key in value]
        problems.append(Problem(f"{_listed(mixed)} belong to different formats", hint=_FORMATS))
        return None
    if not leads:
        found = len(problems)
        for key in value:
            if key not in NOTES and (meant := _meant(key, _EVERY_KEY)):
                problems.append(Problem("unknown key", field=key, hint=f"did you mean {meant}?"))
        if len(problems) == found:
            problems.append(Problem(f"no key of a known format among {_listed(list(value))}", hint=_FORMATS))
        return None
    if leads != ["prompt"]:
        return "text" if leads == ["text"] else "messages"
    format_: RowFormat = "prompt"
    if "completion" in value:
        format_ = "completion"
    elif {"chosen", "rejected"} & value.keys():
        format_ = "preference"
    for key in KEYS[format_]:
        if key not in value:
            problems.append(Problem("is missing", field=key, hint=_FORMATS))
    return format_


_FORMATS = "a row has prompt; prompt and completion; text; messages; or prompt, chosen and rejected"


def _check_fields(value: dict[str, Any], format_: RowFormat, problems: list[Problem]) -> None:
    for key in KEYS[format_]:
        if key not in value:
            continue
        if key == "messages":
            _check_messages(value[key], key, problems, weights=True)
        elif key == "prompt" and isinstance(value[key], list):
            _check_messages(value[key], key, problems, prompt=True)
        elif key in ("completion", "chosen", "rejected") and isinstance(value[key], list):
            _check_messages(value[key], key, problems, answer=True)
            if not isinstance(value.get("prompt"), list):
                hint = "give prompt as a list of messages too, or this as a string"
                problems.append(Problem("is a list of messages, but prompt is not", field=key, hint=hint))
        else:
            _check_text(value[key], key, problems, "prompt" if key == "prompt" else "")
    if format_ == "preference" and not problems and value["chosen"] == value["rejected"]:
        problems.append(Problem("chosen and rejected are the same", field="rejected"))
    reason = value.get("finish_reason")
    if format_ in ("completion", "messages") and reason not in (None, "stop", "length"):
        problems.append(Problem(f"{reason!r} is not one of stop, length", field="finish_reason"))


def _check_messages(
    value: Any,
    field: str,
    problems: list[Problem],
    *,
    weights: bool = False,
    prompt: bool = False,
    answer: bool = False,
) -> None:
    if not isinstance(value, list) or not value:
        what = "is an empty list" if value == [] else f"must be a list of messages, not {kind_of(value)}"
        problems.append(Problem(what, field=field))
        return
    before = len(problems)
    for index, message in enumerate(value):
        _check_message(message, f"{field}[{index}]", problems, weights)
    if len(problems) > before:
        return
    roles = [message["role"] for message in value]
    if prompt and roles[-1] == "assistant":
        problems.append(Problem("a prompt must not end with an answer", field=f"{field}[{len(value) - 1}].role"))
    if answer and roles != ["assistant"]:
        problems.append(Problem(f"must be one message of role assistant, not {', '.join(roles)}", field=field))
    if not answer and "user" not in roles:
        problems.append(Problem("no message of role user", field=field))


def _check_message(message: Any, field: str, problems: list[Problem], weights: bool) -> None:
    if not isinstance(message, dict):
        problems.append(Problem(f"must be an object, not {kind_of(message)}", field=field))
        return
    for key in message:
        if key not in MESSAGE_KEYS:
            problems.append(_unknown(f"{field}.{key}", key, MESSAGE_KEYS, "in a message"))
    role = message.get("role")
    if role not in ROLES:
        meant = nearest(role, ROLES) if isinstance(role, str) else None
        meant = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}.get(str(role), meant)
        what = f"{role!r} is not one of {', '.join(ROLES)}" if "role" in message else "is missing"
        hint = f"did you mean {meant}?" if meant else None
        problems.append(Problem(what, field=f"{field}.role", hint=hint))
    if "content" not in message:
        problems.append(Problem("is missing", field=f"{field}.content"))
    elif role in ("user", "assistant") and message.get("weight") != 0:
        _check_text(message["content"], f"{field}.content", problems, "")
    else:
        _check_string(message["content"], f"{field}.content", problems)
    for key in ("name", "tool_call_id"):
        if key in message:
            _check_string(message[key], f"{field}.{key}", problems)
    if "weight" in message:
        weight = message["weight"]
        if not weights or role != "assistant":
            hint = "only on assistant messages of a messages row: no other is trained"
            problems.append(Problem("is allowed on answers only", field=f"{field}.weight", hint=hint))
        elif isinstance(weight, bool) or weight not in (0, 1):
            problems.append(Problem(f"must be 0 or 1, not {weight!r}", field=f"{field}.weight"))


def _check_string(value: Any, field: str, problems: list[Problem]) -> bool:
    if not isinstance(value, str):
        hint = None
        if isinstance(value, list):
            hint = "content parts are not read: join their texts into one string"
        what = "null" if value is None else kind_of(value)
        problems.append(Problem(f"must be a string, not {what}", field=field, hint=hint))
        return False
    try:
        value.encode()
    except UnicodeEncodeError as error:
        lone = f"U+{ord(value[error.start]):04X}"
        problems.append(Problem(f"holds {lone}, half of a surrogate pair, which is no character", field=field))
        return False
    return True


def _check_text(value: Any, field: str, problems: list[Problem], what: str) -> None:
    if _check_string(value, field, problems) and (reason := reject_reason(value)):
        problems.append(Problem(f"{reason} {what}".strip(), field=field))


def reject_reason(answer: str) -> str | None:
    """Why an answer must not be trained: ``empty`` or ``whitespace``; None for a good one."""
    if not answer:
        return "empty"
    return None if answer.strip() else "whitespace"


def prompt_of(row: Row) -> str | list[Message]:
    """What a model is asked by a row: its prompt, or its messages up to the last answer, without weights.

    A text row is its own prompt.
    """
    if row.format == "text":
        return str(row.value["text"])
    prompt = row.value["messages"] if "messages" in row.value else row.value["prompt"]
    if isinstance(prompt, str):
        return prompt
    messages = [bare(message) for message in prompt]
    while messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def bare(message: Message) -> Message:
    """A message as a chat template sees it: without Limbeck's own `weight`."""
    return {key: value for key, value in message.items() if key != "weight"}


def _unknown(field: str, key: str, known: Sequence[str], where: str, also: Sequence[str] = ()) -> Problem:
    meant = _meant(key, [*known, *also])
    hint = f"did you mean {meant}?" if meant else f"allowed: {', '.join(known)}"
    return Problem(f"unknown key {where}", field=field, hint=hint)


def _meant(key: str, known: Sequence[str]) -> str | None:
    alias = _ALIASES.get(key.lower())
    return alias if alias in known else nearest(key.lower(), known)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
