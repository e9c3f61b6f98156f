"""The plugin `vllm`: an engine of vLLM that this process starts and ends."""

from __future__ import annotations

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Teacher, TeacherPlugin
from limbeck_vllm.config import VllmConfig

INSTALL = 'pip install "limbeck-vllm[gpu]", or on a machine without a GPU as plugins/limbeck-vllm/README.md says'


def _vllm(config: VllmConfig) -> Teacher:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        problem = Problem("the teacher `vllm` needs vllm", hint=INSTALL)
        raise LimbeckError(Reason.EXTRA_MISSING, problems=[problem])
    from limbeck_vllm.teacher import VllmTeacher

    return VllmTeacher(config)


PLUGINS = (
    TeacherPlugin(
        name="vllm",
        config=VllmConfig,
        factory=_vllm,
        summary="Any model that vLLM runs, by an engine on this machine.",
    ),
)
