"""The plugin `vllm-server`."""

from __future__ import annotations

from limbeck.interfaces import TeacherPlugin

PLUGINS: tuple[TeacherPlugin, ...] = ()
