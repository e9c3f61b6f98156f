"""The plugin `vllm-server`: a vLLM server that runs elsewhere."""

from __future__ import annotations

from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck_vllm.server_config import VllmServerConfig


def _vllm_server(config: VllmServerConfig) -> Teacher:
    from limbeck_vllm.server_teacher import VllmServerTeacher

    return VllmServerTeacher(config)


PLUGINS = (
    TeacherPlugin(
        name="vllm-server",
        config=VllmServerConfig,
        factory=_vllm_server,
        summary="A model that `vllm serve` runs, here or on another machine.",
    ),
)
