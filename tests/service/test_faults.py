"""Every fault of benchmarks/faults.py, done to a real server: nothing lost, nothing twice, nothing wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


faults = _module()
MOST_MEMORY = 400 * 2**20  # bytes that a server may grow by: eight stopped readers have their quotas full


@pytest.mark.parametrize("name", list(faults.FAULTS))
def test_nothing_is_lost_doubled_or_wrong(name: str) -> None:
    found = faults.run(name, 80)
    if found.notes[0].startswith("not done"):
        pytest.skip(found.notes[0])
    assert found.good, found
    assert found.most - found.before < MOST_MEMORY
