"""A scripted server and teachers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck.testing.text_teachers import ask
from limbeck_openai import gate
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.teacher import OpenAITeacher


def scripted() -> ModuleType:
    """The module beside this one."""
    spec = spec_from_file_location("limbeck_openai_scripted", Path(__file__).with_name("scripted.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Server = scripted().Server
Serve = Callable[..., Any]
Make = Callable[..., OpenAITeacher]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gate, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(gate, "POLL", 0.02)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server with steps."""
    with ExitStack() as stack:
        yield lambda *steps, **more: stack.enter_context(Server(*steps, **more))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A teacher of a server, with a cache of the test's own; closed at the end."""
    made: list[OpenAITeacher] = []

    def teacher(server: Any, **options: Any) -> OpenAITeacher:
        given = {"base_url": server.base_url, "model": "small", "cache": str(tmp_path / "cache"), "concurrency": 1}
        made.append(OpenAITeacher(OpenAIConfig(**{**given, "timeout": 5.0, **options})))
        return made[-1]

    yield teacher
    for each in made:
        ask(each.close())
