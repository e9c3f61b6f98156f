"""`limbeck schema`: one JSON Schema with every plugin, checked here by a validator of the keywords that it uses."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import ConfigDict

from limbeck.interfaces import LossPlugin, Needs, TokenLossConfig
from limbeck.plugins import Entry, Registry
from limbeck.recipe.json_schema import plugin_schema, recipe_schema

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
CHECKED = {"type", "enum", "const", "anyOf", "not", "$ref", "properties", "additionalProperties", "required", "items"}
CHECKED |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "minLength"}
CHECKED |= {"minProperties"}
REMARKS = {"title", "description", "default", "$defs", "$schema", "$comment"}


def valid(schema, value, top):
    """Whether `value` fits; knows exactly the keywords that Limbeck's schema uses."""
    assert set(schema) <= CHECKED | REMARKS, set(schema) - CHECKED - REMARKS
    if "$ref" in schema:
        name = re.fullmatch(r"#/\$defs/(.+)", schema["$ref"])[1]
        if not valid(top["$defs"][name], value, top):
            return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = schema.get("type")
    checks = [
        kind is None or (isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))),
        "enum" not in schema or value in schema["enum"],
        "const" not in schema or value == schema["const"],
        "anyOf" not in schema or any(valid(arm, value, top) for arm in schema["anyOf"]),
        "not" not in schema or not valid(schema["not"], value, top),
        not number or value >= schema.get("minimum", value),
        not number or value <= schema.get("maximum", value),
        not number or "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
        not number or "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
    ]
    if isinstance(value, list):
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
        checks += [valid(schema.get("items", {}), item, top) for item in value]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        checks.append(set(schema.get("required", [])) <= set(value))
        checks.append(schema.get("additionalProperties", True) is not False or set(value) <= set(properties))
        checks += [valid(properties[name], inner, top) for name, inner in value.items() if name in properties]
        checks.append(len(value) >= schema.get("minProperties", 0))
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            checks += [valid(others, inner, top) for name, inner in value.items() if name not in properties]
    return all(checks)


@pytest.fixture(scope="module")
def schema(registry):
    return json.loads(json.dumps(recipe_schema(registry)))


GOOD = {
    "teacher": {"plugin": "transformers", "model": "a/b"},
    "student": {"from": "teacher", "layers": [0, 1]},
    "data": {"generator": {"plugin": "prompts", "path": "p.jsonl"}, "holdout": 0.1},
    "losses": [
        {"plugin": "forward_kl", "temperature": {"plugin": "piecewise", "points": [[0, 2.0]]}},
        {"plugin": "cross_entropy", "weight": 0.1},
    ],
    "output": "out",
}


def test_a_recipe_fits(schema):
    assert valid(schema, GOOD, schema)
    assert valid(schema, {**GOOD, "teacher": "a", "teachers": {"a": GOOD["teacher"], "b": GOOD["teacher"]}}, schema)


BAD = {
    "a field misspelt": {"ouptut": "x"},
    "an unknown teacher": {"teacher": {"plugin": "transformer", "model": "a/b"}},
    "a teacher's field misspelt": {"teacher": {"plugin": "transformers", "modle": "a/b"}},
    "a teacher where a loss goes": {"losses": [{"plugin": "transformers", "model": "a/b"}]},
    "another loss's field": {"losses": [{"plugin": "cross_entropy", "top_k": 3}]},
    "a weight below 0": {"losses": [{"plugin": "cross_entropy", "weight": -1}]},
    "a temperature of 0": {"losses": [{"plugin": "forward_kl", "temperature": 0}]},
    "a loss among the teachers": {"teachers": {"a": {"plugin": "cross_entropy"}}},
    "no teacher among the teachers": {"teachers": {}},
    "a loss as a schedule": {"losses": [{"plugin": "jsd", "temperature": {"plugin": "jsd"}}]},
    "no loss": {"losses": []},
    "a text for a number": {"training": {"learning_rate": "3e-4"}},
    "a training argument that is not taken": {"training": {"fp16": True}},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_the_loader_refuses_does_not_fit(schema, change):
    assert not valid(schema, {**GOOD, **change}, schema)


def test_every_plugin_and_every_reference_is_there(schema, registry):
    for entry in registry.entries:
        assert (
            schema["$defs"][f"{entry.kind}.{entry.plugin.name}"]["properties"]["plugin"]["const"] == entry.plugin.name
        )
    text = json.dumps(schema)
    assert set(re.findall(r'"#/\$defs/([^"]+)"', text)) <= set(schema["$defs"])
    assert "PluginRef" not in text


def test_every_field_of_a_recipe_has_a_description_or_a_definition_with_one(schema):
    bare = []
    for name, part in {"recipe": schema, **schema["$defs"]}.items():
        for field, value in part.get("properties", {}).items():
            target = value.get("$ref", "").removeprefix("#/$defs/")
            if not value.get("description") and not schema["$defs"].get(target, {}).get("description"):
                bare.append(f"{name}.{field}")
    assert not bare


class Unschemed:
    """A type that pydantic knows no schema of."""


class OddConfig(TokenLossConfig):
    """A config with such a type."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    odd: Unschemed | None = None


def test_a_config_without_a_schema_or_a_clash_takes_nothing_else_down(registry):
    def loss(name, config):
        plugin = LossPlugin(
            name=name, kind="token", config=config, needs=lambda c: Needs(), factory=lambda c, x: None, summary="X."
        )
        return Entry(plugin, "loss", "limbeck-odd", "1.0")

    more = Registry((*registry.entries, loss("odd", OddConfig), loss("jsd", TokenLossConfig)), ())
    schema = recipe_schema(more)
    assert valid(schema, {**GOOD, "losses": [{"plugin": "odd", "anything": 1}]}, schema)
    assert "loss.jsd" not in schema["$defs"]
    assert valid(schema, GOOD, schema)


def test_the_schema_of_one_plugin_stands_alone(registry):
    schema = plugin_schema(registry.entry("loss", "forward_kl"))
    assert valid(schema, {"plugin": "forward_kl", "temperature": {"plugin": "linear", "start": 1}}, schema)
    assert not valid(schema, {"plugin": "jsd"}, schema)
