"""limbeck.v1.PluginService: what is installed, and schemas that a form can be drawn from."""

from __future__ import annotations

import asyncio
import json

from limbeck.plugins import Entry, Failure, Registry, load_plugins
from limbeck.recipe.json_schema import DIALECT, recipe_schema
from limbeck.service.plugin_service import PluginService
from limbeck.v1 import plugin_service_pb2 as pb
from limbeck.v1.plugin_service_pb2_grpc import PluginServiceStub

from .served import serving


def references(value: object) -> set[str]:
    """Every $ref in a schema."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = {value["$ref"]} if isinstance(value, dict) and isinstance(value.get("$ref"), str) else set()
    return own.union(*map(references, inner))


def answer_of(registry: Registry) -> pb.ListPluginsResponse:
    raw = asyncio.run(PluginService(registry).list_plugins(b"", None))
    return pb.ListPluginsResponse.FromString(raw)


def test_every_plugin_is_listed_with_a_schema_of_its_config(echo):
    async def check():
        async with serving(echo) as served:
            return await PluginServiceStub(served.channel).ListPlugins(pb.ListPluginsRequest())

    answer = asyncio.run(check())
    entries = load_plugins().entries
    assert {(pb.Plugin.Kind.Name(one.kind)[5:].lower(), one.name) for one in answer.plugins} == {
        (entry.kind, entry.plugin.name) for entry in entries
    }
    kinds = [plugin.kind for plugin in answer.plugins]
    assert kinds == sorted(kinds)
    assert all(plugin.distribution and plugin.version and plugin.summary for plugin in answer.plugins)
    for plugin in answer.plugins:
        schema = json.loads(plugin.config_schema)
        assert schema["$schema"] == DIALECT
        assert schema["properties"]["plugin"]["const"] == plugin.name
        assert schema["additionalProperties"] is False
        assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
    (made,) = (json.loads(plugin.config_schema) for plugin in answer.plugins if plugin.name == "echo")
    assert made["required"] == ["plugin", "tokenizer"]
    assert made["properties"]["tokenizer"]["description"]
    assert json.loads(answer.recipe_schema) == recipe_schema(load_plugins())


def test_what_failed_is_told_without_paths_of_the_server():
    entry = load_plugins().entries[0]
    other = Entry(entry.plugin, entry.kind, "limbeck-other", "2.0")
    failure = Failure("broken", "limbeck-broken", "1.0", "ImportError: /home/op/site/broken.py has no x")
    answer = answer_of(Registry((entry, other), (failure,)))
    assert [one.source for one in answer.failed] == ["limbeck-broken 1.0 (broken)", ""]
    assert answer.failed[0].error == "ImportError: …/broken.py has no x"
    assert "limbeck-other" in answer.failed[1].error
