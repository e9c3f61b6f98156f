"""Reads YAML 1.2 (core schema) into plain values and remembers the line and column of each.

Recipes are read by the rules of YAML 1.2, not 1.1: `1e-4` is a number, `yes` and `no` are text, `010` is ten. A
duplicate key, a second document, a tag and a number that is not finite are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from limbeck.errors import LimbeckError, Problem, Reason

Path_ = tuple[str | int, ...]  # keys and indexes from the top, e.g. ("losses", 0, "weight")

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_STR_TAG = "tag:yaml.org,2002:str"
MOST_VALUES = 100_000  # aliases can make a short text enormous
MOST_SENT = 10_000  # of a text that came over the network: reading more would keep others waiting
MOST_DEPTH = 100
MOST_DIGITS = 400  # of a whole number: longer ones are infinite as any other, and Python does not print them


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file, counted from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """A YAML file as plain dicts, lists and scalars, with the place of every key and value."""

    path: Path
    text: str
    value: Any = None
    values: dict[Path_, Mark] = field(default_factory=dict)
    keys: dict[Path_, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, at: Path_, message: str, hint: str | None = None, *, key: bool = False) -> Problem:
        """A problem of the value at `at`, or of its key. What is not there has the place of the key above it."""
        near = at
        while near and near not in self.values:
            near = near[:-1]
        above = near != at
        mark = (self.keys.get(near) if key or above else None) or self.values.get(near)
        line, column = (mark.line, mark.column) if mark else (None, None)
        return Problem(message, str(self.path), line, column, field_text(at) or None, hint)

    def find(self, at: Path_, value: str) -> Iterator[Path_]:
        """Places at or below `at` that hold exactly the text `value`, in order."""
        for path in self.values:
            if path[: len(at)] == at and self.at(path) == value:
                yield path

    def at(self, path: Path_) -> Any:
        """The value at a place; None where there is none."""
        value = self.value
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def field_text(path: Path_) -> str:
    """("losses", 0, "weight") as a user would write it: ``losses[0].weight``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def field_path(field: str) -> Path_:
    """The inverse of `field_text`: ``losses[0].weight`` is ("losses", 0, "weight")."""
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", field)
    return tuple(int(index) if index else name for index, name in parts)


def read_document(
    path: Path, *, must_have: str = "student:, data:, losses: and output:", text: str | None = None
) -> Document:
    """Read a YAML file whose top is a mapping; `must_have` is what one that is none is told to hold.

    With `text` it is read as if it stood in a file at `path`, which need not be there. Raises RECIPE_INVALID with the
    place of every fault.
    """
    document = Document(path, _read_text(path) if text is None else text)
    try:
        _Builder(document, MOST_VALUES if text is None else MOST_SENT).build()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        parts = [part for part in (error.context, error.problem) if part]
        hint = _syntax_hint(document.text, mark)
        problem = Problem(", ".join(parts), str(path), line, column, hint=hint)
        raise LimbeckError(Reason.RECIPE_INVALID, "The recipe is not valid YAML.", [problem]) from None
    except (YAMLError, RecursionError, ValueError) as error:
        line, column = _first_control(document.text) or (None, None)
        problem = Problem(_unreadable(document.text, error), str(path), line, column)
        raise LimbeckError(Reason.RECIPE_INVALID, "The recipe is not valid YAML.", [problem]) from None
    if not document.problems and not isinstance(document.value, dict):
        what = "the file is empty" if document.value is None else "the file is not a mapping of fields"
        hint = f"it must have at least {must_have}"
        document.problems.append(document.problem((), what, hint))
    if document.problems and not isinstance(document.value, dict):
        raise LimbeckError(Reason.RECIPE_INVALID, problems=document.problems)
    return document


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        problem = Problem("there is no such file", file=str(path), hint="give the path of a YAML file")
    except IsADirectoryError:
        problem = Problem("this is a folder, not a file", file=str(path), hint="give the path of the YAML file in it")
    except OSError as error:
        problem = Problem(f"cannot be read: {error.strerror}", file=str(path))
    else:
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            column = error.start - raw.rfind(b"\n", 0, error.start)
            message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
            problem = Problem(message, file=str(path), line=line, column=column, hint="save the file as UTF-8")
    raise LimbeckError(Reason.RECIPE_INVALID, "The recipe cannot be read.", [problem])


def _syntax_hint(text: str, mark: Any) -> str | None:
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return "a bracket or quote is not closed"
    return "indent with spaces, not with tabs" if lines[mark.line].lstrip(" ").startswith("\t") else None


def _unreadable(text: str, error: Exception) -> str:
    if _first_control(text):
        return "holds a control character that YAML does not allow"
    return "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read: {error}"


def _first_control(text: str) -> tuple[int, int] | None:
    """Line and column of the first character that YAML does not allow."""
    found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    if found is None:
        return None
    at = found.start()
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


@dataclass(slots=True)
class _Node:
    """What an event stream says: a scalar's text and style, or children (pairs for a mapping, one for an alias)."""

    mark: Mark
    kind: str
    text: str = ""
    plain: bool = False
    children: list[Any] = field(default_factory=list)


class _Builder:
    """Composes nodes from ruamel's events, then values from nodes."""

    def __init__(self, document: Document, most: int) -> None:
        self._document, self._most = document, most
        self._events = YAML(typ="safe", pure=True).parse(document.text)
        self._anchors: dict[str, _Node] = {}
        self._nodes = self._count = 0

    def build(self) -> None:
        document = self._document
        documents = 0
        for event in self._events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    self._fault(_mark(event), "a recipe is one YAML document, but a second one begins here")
                    return
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                root = self._node(event, 0)
                document.value = self._value(root, (), ())

    def _fault(self, mark: Mark, message: str, hint: str | None = None, at: Path_ = ()) -> None:
        document = self._document
        problem = Problem(message, str(document.path), mark.line, mark.column, field_text(at) or None, hint)
        document.problems.append(problem)

    def _too_many(self) -> ValueError:
        return ValueError(f"it has more than {self._most:,} values; an alias may repeat itself")

    def _node(self, event: Any, depth: int) -> _Node:
        if depth > MOST_DEPTH:
            raise RecursionError
        self._nodes += 1
        if self._nodes > 2 * self._most:  # keys are nodes too
            raise self._too_many()
        kind = type(event).__name__
        if kind == "AliasEvent":
            known = self._anchors.get(event.anchor)
            if known is None:
                self._fault(_mark(event), f"there is no anchor &{event.anchor} before this")
                return _Node(_mark(event), "scalar")
            return _Node(_mark(event), "alias", children=[known])
        tag = getattr(event, "tag", None)
        if tag is not None and str(tag) != _STR_TAG:
            self._fault(_mark(event), f"tags such as {tag} are not allowed in a recipe", "remove it")
        node = _Node(_mark(event), {"ScalarEvent": "scalar", "SequenceStartEvent": "list"}.get(kind, "mapping"))
        if event.anchor:
            self._anchors[event.anchor] = node
        if node.kind == "scalar":
            node.text, node.plain = event.value, event.style is None and tag is None
            return node
        children = []
        while type(event := next(self._events)).__name__ not in ("SequenceEndEvent", "MappingEndEvent"):
            children.append(self._node(event, depth + 1))
        node.children = list(zip(children[::2], children[1::2], strict=True)) if node.kind == "mapping" else children
        return node

    def _value(self, node: _Node, at: Path_, above: tuple[int, ...]) -> Any:
        node, mark = _target(node), node.mark  # an alias stands where it is written, its parts where the anchor is
        self._count += 1
        if self._count > self._most:
            raise self._too_many()
        if id(node) in above:
            self._fault(node.mark, "an alias stands inside of its own anchor", at=at)
            return None
        self._document.values[at] = mark
        inside = (*above, id(node))
        if node.kind == "scalar":
            return self._scalar(node, at)
        if node.kind == "list":
            return [self._value(child, (*at, index), inside) for index, child in enumerate(node.children)]
        return self._mapping(node, at, inside)

    def _mapping(self, node: _Node, at: Path_, inside: tuple[int, ...]) -> dict[str, Any]:
        seen: dict[str, Mark] = {}
        result: dict[str, Any] = {}
        merged: list[_Node] = []
        for written, child in node.children:
            key = _target(written)
            if key.kind != "scalar":
                self._fault(key.mark, "a field's name must be text", at=at)
            elif key.text in seen:
                first = seen[key.text]
                message = f"{key.text!r} is given twice, first on line {first.line}"
                self._fault(key.mark, message, "keep one of them", (*at, key.text))
            elif key.text == "<<" and key.plain:
                named = _target(child)
                merged += named.children if named.kind == "list" else [named]
            else:
                seen[key.text] = key.mark
                self._document.keys[*at, key.text] = key.mark
                result[key.text] = self._value(child, (*at, key.text), inside)
                if result[key.text] is None and not child.text:  # an empty value ends where the next thing begins
                    self._document.values[*at, key.text] = key.mark
        for other in map(_target, merged):  # `<<: *anchor`: what this mapping says itself wins, then the earlier one
            if other.kind != "mapping" or id(other) in inside:
                self._fault(other.mark, "<< must name a mapping, or a list of mappings", at=at)
                continue
            for written, child in other.children:
                key = _target(written)
                if key.kind == "scalar" and key.text not in result:
                    self._document.keys[*at, key.text] = key.mark
                    result[key.text] = self._value(child, (*at, key.text), (*inside, id(other)))
        return result

    def _scalar(self, node: _Node, at: Path_) -> Any:
        text = node.text
        if not node.plain:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        number: int | float
        if _INT.fullmatch(text) and len(text) < MOST_DIGITS:
            return int(text)
        if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
            number = int(text, 0) if len(text) < MOST_DIGITS else math.inf
        elif _FLOAT.fullmatch(text):
            number = float(text)
        elif _NOT_FINITE.fullmatch(text):
            number = math.inf
        else:
            return text
        if number in (math.inf, -math.inf):
            shown = text if len(text) <= 40 else f"{text[:20]}… ({len(text):,} digits)"
            self._fault(node.mark, f"{shown} is not a finite number", at=at)
        return number


def _target(node: _Node) -> _Node:
    """The node that an alias names, any other itself."""
    return node.children[0] if node.kind == "alias" else node


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)
