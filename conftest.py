"""What all tests share: those that need vLLM are skipped where it is not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `vllm` where vLLM is not installed: `make vllm` runs them in an environment of its own."""
    if find_spec("vllm") is None:
        skip = pytest.mark.skip(reason="vLLM is not installed here: make vllm")
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(skip)
