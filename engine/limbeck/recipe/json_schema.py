"""One JSON Schema of a recipe with every installed plugin, for editors and for forms."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from limbeck.interfaces import PluginKind
from limbeck.plugins import Entry, Registry
from limbeck.recipe.schema import RecipeFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS: tuple[PluginKind, ...] = ("teacher", "generator", "loss", "scheduler")
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """The schema (draft 2020-12). Every plugin is a definition `KIND.NAME`, and `KIND` is any one of them."""
    top, definitions = _schema(RecipeFile)
    for field in ("teacher", "teachers"):
        _point(top["properties"][field], "teacher")
    _point(top["properties"]["losses"], "loss")
    _point(definitions["DataSpec"]["properties"]["generator"], "generator")
    for kind in KINDS:
        entries = [entry for entry in registry.entries if entry.kind == kind and _usable(registry, entry)]
        for entry in entries:
            definitions[f"{kind}.{entry.plugin.name}"] = plugin_schema(entry, definitions)
        arms = [{"$ref": f"#/$defs/{kind}.{entry.plugin.name}"} for entry in entries]
        definitions[kind] = {"anyOf": arms} if arms else {"not": {}}
    return {"$schema": DIALECT, **top, "$defs": dict(sorted(definitions.items()))}


def plugin_schema(entry: Entry, definitions: dict[str, Any] | None = None) -> dict[str, Any]:
    """The schema of `{plugin: NAME, …its config}`; models nested in it go to `definitions`, or stay inside."""
    plugin = entry.plugin
    try:
        schema, nested = _schema(plugin.config)
    except Exception as error:  # a config with a type of its own: any mapping is let through here
        schema, nested = {"type": "object", "properties": {}, "$comment": f"no schema: {error}"}, {}
    prefix = f"{entry.kind}.{plugin.name}."
    for name, value in nested.items():
        _rename(value, nested, prefix)
        _point(value, "scheduler")
        if definitions is not None:
            definitions[prefix + name] = value
    _rename(schema, nested, prefix)
    _point(schema, "scheduler")
    constant = {"const": plugin.name, "description": f"{plugin.summary} ({entry.distribution} {entry.version})"}
    schema["properties"] = {"plugin": constant, **schema.get("properties", {})}
    schema["required"] = ["plugin", *schema.get("required", [])]
    schema["title"] = f"{entry.kind} {plugin.name}"
    if definitions is None:
        any_scheduler = {"type": "object", "required": ["plugin"], "properties": {"plugin": {"type": "string"}}}
        schema["$defs"] = {"scheduler": any_scheduler, **{prefix + inner: value for inner, value in nested.items()}}
    return schema


def _usable(registry: Registry, entry: Entry) -> bool:
    return len(registry.claims(entry.kind, entry.plugin.name)) == 1


def _schema(model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's schema and the definitions it refers to, without pydantic's PluginRef."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    definitions.pop("PluginRef", None)
    for part in (schema, *definitions.values()):
        _standard(part)
    return schema, definitions


def _standard(value: Any) -> None:
    """Write bounds by their JSON Schema names: pydantic leaves `gt` on a union as it is."""
    for inner in _inside(value):
        _standard(inner)
    if isinstance(value, dict) and "anyOf" in value:
        for name, keyword in _BOUNDS.items():
            if isinstance(value.get(name), int | float):
                value[keyword] = value.pop(name)


def _point(value: Any, kind: str) -> None:
    """Let every PluginRef inside of `value` be a plugin of `kind`."""
    for inner in _inside(value):
        _point(inner, kind)
    if isinstance(value, dict) and value.get("$ref") == "#/$defs/PluginRef":
        value["$ref"] = f"#/$defs/{kind}"


def _rename(value: Any, names: dict[str, Any], prefix: str) -> None:
    for inner in _inside(value):
        _rename(inner, names, prefix)
    if isinstance(value, dict):
        reference = str(value.get("$ref", "")).removeprefix("#/$defs/")
        if reference in names:
            value["$ref"] = f"#/$defs/{prefix}{reference}"


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
