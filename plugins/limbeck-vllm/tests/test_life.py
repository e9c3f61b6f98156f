"""Start, failure, death and end of an engine, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.testing.teachers import ask, completions, scores
from limbeck_vllm import teacher as module
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.teacher import VllmTeacher

pytestmark = pytest.mark.vllm
IDS = np.array([2, 70, 71, 72], np.int32)
PHASES = ["starting the engine", "loading the weights", "warming up"]


def family(leader: int) -> list[psutil.Process]:
    """The living processes of an engine's group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def one_score(teacher: VllmTeacher) -> int:
    return ask(scores(teacher, [ScoreItem(0, IDS, 0, 3)], Want(top_k=2)))[0].n


def test_a_life_with_phases_a_death_at_work_another_engine_and_an_end(tiny_config: VllmConfig) -> None:
    teacher = VllmTeacher(tiny_config)
    phases: list[str] = []
    asyncio.run(teacher.start(phases.append))
    assert phases == PHASES
    first = teacher._engine
    assert first is not None

    async def killed() -> None:
        prompts = [Prompt(i, IDS) for i in range(6)]
        task = asyncio.ensure_future(completions(teacher, prompts, Sampling(max_new_tokens=450, temperature=1.0)))
        while not first._asked:
            await asyncio.sleep(0.01)
        core = next(process for process in family(first.pid) if "EngineCore" in process.name())
        core.kill()
        await task

    assert one_score(teacher) == 3
    with pytest.raises(LimbeckError) as caught:
        asyncio.run(killed())
    assert caught.value.reason is Reason.TEACHER_UNAVAILABLE
    assert "ended while it worked" in str(caught.value)
    until(lambda: not family(first.pid))
    assert one_score(teacher) == 3  # by another engine
    second = teacher._engine
    assert second is not None
    assert second is not first
    os.kill(second.pid, signal.SIGKILL)  # the process between, while idle
    until(lambda: second.error is not None)
    assert not family(second.pid)
    asyncio.run(teacher.close())
    asyncio.run(teacher.close())
    with pytest.raises(LimbeckError, match="not running") as caught:
        one_score(teacher)
    assert "closed" in str(caught.value)


def test_closing_while_it_starts_ends_it(tiny_config: VllmConfig) -> None:
    teacher = VllmTeacher(tiny_config)

    async def closed() -> None:
        began = asyncio.ensure_future(teacher.start(lambda _: None))
        while teacher._engine is None or len(family(teacher._engine.pid)) < 1:
            await asyncio.sleep(0.01)
        await teacher.close()
        await began

    with pytest.raises(LimbeckError) as caught:
        asyncio.run(closed())
    assert caught.value.reason is Reason.TEACHER_UNAVAILABLE
    assert teacher._engine is not None
    assert not family(teacher._engine.pid)


def changed(folder: Path, to: Path, **config: object) -> Path:
    shutil.copytree(folder, to)
    file = to / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return to


def test_what_cannot_start_fails_in_its_own_words_and_is_tried_again_after_a_rest_not_in_a_loop(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tiny_folder, tmp_path / "unknown", architectures=["NothingForCausalLM"])
    teacher = VllmTeacher(VllmConfig(model=str(folder), engine={"kv_cache_memory_bytes": 1 << 28}))

    def failure() -> LimbeckError:
        with pytest.raises(LimbeckError) as caught:
            one_score(teacher)
        assert caught.value.reason is Reason.MODEL_INVALID
        assert "Traceback" not in str(caught.value)
        return caught.value

    for _ in range(2):
        assert "Model architectures ['NothingForCausalLM'] are not supported" in str(failure())
    first = teacher._engine
    assert first is not None
    monkeypatch.setattr(module, "REST", 0.0)
    shutil.copy(tiny_folder / "config.json", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "incomplete metadata, file not fully covered" in str(failure())  # of the process that reads them
    assert teacher._engine is not first
    asyncio.run(teacher.close())


def test_more_memory_than_there_is_is_told_with_the_settings_for_it(tiny_folder: Path) -> None:
    teacher = VllmTeacher(VllmConfig(model=str(tiny_folder), engine={"kv_cache_memory_bytes": 1 << 50}))
    with pytest.raises(LimbeckError) as caught:
        asyncio.run(teacher.start(lambda _: None))
    asyncio.run(teacher.close())
    error = caught.value
    assert "Traceback" not in str(error)
    assert error.reason is Reason.TEACHER_UNAVAILABLE
    assert "less than requested memory" in str(error)
    assert "max_model_len" in str(error)
