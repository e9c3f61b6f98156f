"""JSON Lines as users write them: each line an object, each fault told with its line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.errors import Problem

_COMMA = "Expecting ',' delimiter"
_MOST_REPAIRS = 8


class _Repeated(ValueError):
    """A key that an object holds twice."""


class _Constant(ValueError):
    """NaN or an infinity, which JSON does not know."""


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, list[Problem]]]:
    """(line from 1, object, problems) of each line that is not blank.

    A line with problems comes with the object that it was probably meant to be, or None, so that what else is wrong
    with it can be told in the same go; it must not be used. A byte order mark at the start of the file is skipped.
    A file that cannot be read gives line 0.
    """
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
                if raw.strip():
                    yield line, *_parse(str(path), line, raw.rstrip(b"\r\n"))
    except OSError as error:
        hint = f"looked for {path.absolute()}" if isinstance(error, FileNotFoundError) else None
        yield 0, None, [Problem(f"cannot be read: {error.strerror}", file=str(path), hint=hint)]


def _parse(file: str, line: int, raw: bytes) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode(errors="replace")) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        return None, [Problem(message, file=file, line=line, column=column, hint="save the file as UTF-8")]
    problems: list[Problem] = []
    for repairs in range(_MOST_REPAIRS):
        try:
            value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        except json.JSONDecodeError as error:
            problem = _syntax(file, line, text, error)
            problems.append(replace(problem, column=(problem.column or 1) - repairs))
            if error.msg != _COMMA or error.pos >= len(text) or text[error.pos] not in '"{[':
                return None, problems
            text = f"{text[: error.pos]},{text[error.pos :]}"  # only to find what else is wrong with the line
        except (_Repeated, _Constant) as error:
            key = str(error)
            place = _column(text, key, again=isinstance(error, _Repeated))
            message = f"the key {key!r} appears twice" if isinstance(error, _Repeated) else f"{key} is not JSON"
            return None, [*problems, Problem(message, file=file, line=line, column=place)]
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            return None, [*problems, Problem(f"not JSON that can be read: {reason}", file=file, line=line)]
        else:
            if isinstance(value, dict):
                return value, problems
            hint = "write one object a line, without brackets around all of them" if isinstance(value, list) else None
            return None, [
                *problems,
                Problem(f"a row must be a JSON object, not {kind_of(value)}", file=file, line=line, hint=hint),
            ]
    return None, problems


def _syntax(file: str, line: int, text: str, error: json.JSONDecodeError) -> Problem:
    if error.msg == _COMMA:
        position = len(text[: error.pos].rstrip())  # where the comma belongs, not where the parser noticed
        message = f"a comma is missing before {text[error.pos : error.pos + 12]!r}"
        if error.pos >= len(text):
            position, message = len(text), "the line ends before the object does"
        return Problem(message, file=file, line=line, column=position + 1)
    hint = None
    if text.strip() in ("[", "{") or (line == 1 and text.lstrip().startswith("[")):
        hint = "write JSON Lines: one object a line, no list around them"
    return Problem(f"not JSON: {error.msg}", file=file, line=line, column=error.pos + 1, hint=hint)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise _Repeated(key)
        value[key] = item
    return value


def _constant(name: str) -> Any:
    raise _Constant(name)


def _column(text: str, word: str, *, again: bool) -> int | None:
    """Column of a bare word outside strings, or of the last time that a key is spelled."""
    if again:
        places = [match.start() for match in re.finditer(re.escape(json.dumps(word, ensure_ascii=False)), text)]
        return places[-1] + 1 if len(places) > 1 else None
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', lambda match: "_" * len(match.group()), text)
    place = bare.find(word)
    return place + 1 if place >= 0 else None


def kind_of(value: Any) -> str:
    """A JSON value's type in JSON's own words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
