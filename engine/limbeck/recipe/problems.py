"""Turns pydantic's errors into problems that a person can act on, each at its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from limbeck.errors import Problem, nearest
from limbeck.recipe.document import Document, Path_

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "int_from_float": "a whole number",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def show(value: Any) -> str:
    """A value as in the message of a problem: JSON, cut where long, with its kind where that helps."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {json.dumps(value[:80], ensure_ascii=False)}"
    return json.dumps(value)[:80]


def problems_of(
    error: ValidationError, document: Document, at: Path_, model: type[BaseModel], skip: Sequence[Path_] = ()
) -> list[Problem]:
    """Every problem that `error` names in what stands at `at`, leaving out what lies at or below a place of `skip`.

    The arms of a union ("a number or a schedule") become one problem.
    """
    grouped: dict[Path_, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        place = _place(document, at, details)
        if not any(place[: len(other)] == other for other in skip):
            grouped.setdefault(place, []).append(details)
    return [
        _problem(document, at, place, errors, model)
        for place, errors in grouped.items()
        if not (_only_types(errors) and _further(place, grouped))
    ]


def places_of(error: ValidationError, document: Document, at: Path_) -> list[Path_]:
    """Every place that `error` names in what stands at `at`."""
    return [_place(document, at, details) for details in error.errors(include_url=False)]


def _further(place: Path_, places: Iterable[Path_]) -> bool:
    """Whether another arm of a union got deeper into the value: that `{plugin: 3}` is no number is no news then."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _only_types(errors: list[ErrorDetails]) -> bool:
    return all(details["type"] in _EXPECTED for details in errors)


def _place(document: Document, at: Path_, details: ErrorDetails) -> Path_:
    """Where in the file: pydantic's location without the names of union arms."""
    place = at
    value = document.at(at)
    last = len(details["loc"]) - 1
    for index, part in enumerate(details["loc"]):
        inside = isinstance(value, dict) and part in value
        inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        if inside or (index == last and details["type"] == "missing"):
            place = (*place, part)
            value = value[part] if inside else None
    return place


def _problem(
    document: Document, at: Path_, place: Path_, errors: list[ErrorDetails], model: type[BaseModel]
) -> Problem:
    if not _only_types(errors):  # the arm of the right type tells what is wrong
        errors = [details for details in errors if details["type"] not in _EXPECTED]
    first = errors[0]
    value = document.at(place)
    kind = first["type"]
    if kind == "missing":
        return document.problem(place, "is missing", f"{_about(model, first['loc'])}".strip() or None)
    if kind == "extra_forbidden":
        return unknown_field(document, place, fields_of(model, first["loc"][:-1]))
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return document.problem(place, f"must be {word} {first['ctx'][name]:.12g}, not {show(value)}")
    if kind == "literal_error":
        allowed = [choice for details in errors for choice in _choices(details)]
        guess = nearest(value, allowed) if isinstance(value, str) else None
        message = f"must be {' or '.join(allowed)}, not {show(value)}"
        return document.problem(place, message, f"did you mean {guess}?" if guess else None)
    if _only_types(errors):
        return _wrong_type(document, place, value, errors)
    if kind == "too_short":
        return document.problem(place, f"must have at least {_entries(first['ctx']['min_length'])}, not {len(value)}")
    if kind == "too_long":
        return document.problem(place, f"must have at most {_entries(first['ctx']['max_length'])}, not {len(value)}")
    if kind == "string_too_short":
        return document.problem(place, "must not be empty")
    if kind == "string_pattern_mismatch":
        return document.problem(place, f"must match {first['ctx']['pattern']}, not {show(value)}")
    messages = dict.fromkeys(details["msg"].removeprefix("Value error, ") for details in errors)
    return document.problem(place, "; ".join(messages))


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _wrong_type(document: Document, place: Path_, value: Any, errors: list[ErrorDetails]) -> Problem:
    plugin = any(details.get("ctx", {}).get("class_name") == "PluginRef" for details in errors)
    expected = [_EXPECTED[details["type"]] for details in errors]
    if plugin:
        expected = [text for text in expected if text != "a mapping"] + ["a mapping with plugin:"]
    if "a number" in expected:
        expected = [text for text in expected if text != "a whole number"]
    expected = list(dict.fromkeys(expected))
    return document.problem(place, f"must be {' or '.join(expected)}, not {show(value)}", _advice(value, expected))


def _advice(value: Any, expected: list[str]) -> str | None:
    """What to write instead, where that can be told."""
    number = "a number" in expected or "a whole number" in expected
    if number and isinstance(value, dict) and "plugin" in value:
        return "this field cannot be a schedule"
    if isinstance(value, str):
        bare = value.replace("_", "").replace(",", "") if value[:1].isdigit() else value
        try:
            is_number = float(bare) == float(bare)
        except ValueError:
            is_number = False
        if number and is_number:
            return f"write {bare} without quotes" if bare == value else f"write {bare}"
        if "true or false" in expected and value.lower() in _YAML_1_1_BOOLEANS:
            return f"write {_YAML_1_1_BOOLEANS[value.lower()]}: in YAML 1.2 {value} is text"
        if "true or false" in expected and value.lower() in ("true", "false"):
            return f"write {value.lower()} without quotes"
    if isinstance(value, float) and "a whole number" in expected and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, bool | int | float) and "text" in expected:
        return f'write it in quotes: "{json.dumps(value)}"'
    if "a list" in expected and not isinstance(value, dict):
        return f"write [{json.dumps(value, ensure_ascii=False)}]" if value is not None else None
    if "a list" in expected:
        return "put '- ' before it"
    if "a mapping with plugin:" in expected and isinstance(value, str):
        return f"write {{plugin: {value}}} if that is the plugin's name"
    return None


def _choices(details: ErrorDetails) -> list[str]:
    """The allowed values of a literal, from pydantic's "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in details["ctx"]["expected"].replace(" or ", ", ").split(",")]


def unknown_field(document: Document, place: Path_, known: Sequence[str]) -> Problem:
    """A field that does not exist here, with the nearest that does."""
    name = str(place[-1])
    guess = nearest(name, known)
    advice = f"did you mean {guess}?" if guess else f"known here: {', '.join(known)}"
    return document.problem(place, "there is no such field", advice, key=True)


def fields_of(model: type[BaseModel], loc: tuple[int | str, ...] = ()) -> list[str]:
    """Names, as written in a recipe, of the fields of the model at `loc` inside of `model`."""
    for part in loc:
        inner = _field(model, part)
        candidates = [] if inner is None else _models(inner.annotation)
        model = candidates[0] if len(candidates) == 1 else model
    return [field.alias or name for name, field in model.model_fields.items()]


def _about(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    for part in loc[:-1]:
        inner = _field(model, part)
        candidates = [] if inner is None else _models(inner.annotation)
        model = candidates[0] if len(candidates) == 1 else model
    field = _field(model, loc[-1])
    return (field.description or "") if field else ""


def _field(model: type[BaseModel], name: int | str) -> Any:
    return next((field for key, field in model.model_fields.items() if name in (key, field.alias)), None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
