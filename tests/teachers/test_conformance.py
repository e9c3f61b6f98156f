"""The built-in teacher passes what every teacher must pass."""

from pathlib import Path

import pytest

from limbeck.interfaces import Teacher
from limbeck.teachers import PLUGINS, TransformersConfig
from limbeck.testing.teachers import TeacherConformance


@pytest.fixture(scope="module")
def loaded(tiny_teacher: Path) -> Teacher:
    plugin = next(plugin for plugin in PLUGINS if plugin.name == "transformers")
    return plugin.factory(TransformersConfig(model=str(tiny_teacher), batch_tokens=40))


class TestTransformers(TeacherConformance):
    @pytest.fixture
    def teacher(self, loaded: Teacher) -> Teacher:
        return loaded
