"""limbeck.v1.PluginService: what is installed, with the JSON Schemas that forms are drawn from."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property
from typing import Any

import grpc

from limbeck.hosting.public import without_paths
from limbeck.plugins import Registry
from limbeck.recipe.json_schema import DIALECT, KINDS, plugin_schema, recipe_schema
from limbeck.service.calls import Calls
from limbeck.service.translate import parse
from limbeck.v1 import plugin_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["PluginService"].full_name


class PluginService:
    """The handlers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.calls = Calls()

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        made = {"ListPlugins": grpc.unary_unary_rpc_method_handler(self.calls.counted(self.list_plugins))}
        return grpc.method_handlers_generic_handler(SERVICE, made)

    async def list_plugins(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        parse(pb.ListPluginsRequest, request)
        return await asyncio.to_thread(lambda: self._answer)

    @cached_property
    def _answer(self) -> bytes:
        registry = self._registry
        order = {kind: place for place, kind in enumerate(KINDS)}
        entries = sorted(registry.entries, key=lambda entry: (order[entry.kind], entry.plugin.name, entry.distribution))
        plugins = [
            pb.Plugin(
                name=entry.plugin.name,
                kind=f"KIND_{entry.kind.upper()}",
                distribution=entry.distribution,
                version=entry.version,
                summary=entry.plugin.summary,
                config_schema=json.dumps({"$schema": DIALECT, **plugin_schema(entry)}, ensure_ascii=False),
            )
            for entry in entries
        ]
        failed = [
            pb.FailedPlugin(
                source=f"{failure.distribution} {failure.version} ({failure.entry_point})",
                error=without_paths(failure.error),
            )
            for failure in registry.failures
        ]
        failed += [pb.FailedPlugin(error=without_paths(clash)) for clash in registry.clashes()]
        schema = json.dumps(recipe_schema(registry), ensure_ascii=False)
        return pb.ListPluginsResponse(plugins=plugins, failed=failed, recipe_schema=schema).SerializeToString()
