"""Two gloo processes give the gradients of one: DDP, accumulation, tied, untied, soft-capped, frozen; FSDP's traps."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["tied", "untied", "soft-capped", "frozen", "sharded tied"])
def test_two_processes_give_the_gradients_of_one(results: Any, script: ModuleType, name: str) -> None:
    model = script.student(name.removeprefix("sharded "))
    expected = script.gradients(model, [range(4)], model, 1)
    assert any(key.startswith("limbeck_losses") for key in expected)
    for found in (result[name] for result in results):
        assert set(found) == set(expected)
        assert ("lm_head.weight" in found) == (name == "untied")
        for key, gradient in found.items():
            error = (gradient - expected[key]).norm() / expected[key].norm()
            assert error <= 1e-5, (key, error)


def test_a_head_that_is_sharded_where_the_loss_reads_it_is_refused(results: Any) -> None:
    for result in results:
        assert "sharded (a DTensor)" in result["sharded head"]
