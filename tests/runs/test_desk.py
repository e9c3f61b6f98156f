"""The teacher between stages: one at a time, and its memory goes when it is let go."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import ScoreItem, Want
from limbeck.runs.desk import TeacherDesk
from limbeck.runs.stage import Interrupted
from limbeck.teachers import PLUGINS, TransformersConfig


def _recipe(teacher: Path) -> Any:
    config = TransformersConfig(model=str(teacher))
    return SimpleNamespace(teacher=SimpleNamespace(make=lambda: PLUGINS[0].factory(config)))


async def _score(desk: TeacherDesk) -> float:
    item = ScoreItem(0, np.array([2, 70, 71, 72], dtype=np.int32), 0, 3)
    answers = [signal async for _, signal in desk.teacher.score([item], Want(top_k=4))]
    assert answers[0].top_k is not None
    return float(answers[0].top_k.at(1.0)[1].sum())


def test_a_released_teacher_frees_its_weights_and_the_next_question_makes_it_anew(tiny_teacher: Path) -> None:
    with TeacherDesk(_recipe(tiny_teacher)) as desk:
        first = desk.ask(_score(desk))
        weights = weakref.ref(desk.teacher._model._model)  # type: ignore[attr-defined]
        assert weights() is not None
        desk.release()
        assert weights() is None
        assert desk.ask(_score(desk)) == first
        desk.release()
        desk.release()


class Slow:
    """A teacher with a start: it goes through its phases, and stays in the one named "hanging"."""

    def __init__(self, *phases: str) -> None:
        self.phases = phases
        self.done: list[str] = []

    def info(self) -> Any: ...

    def score(self, items: Any, want: Any) -> Any: ...

    def generate(self, prompts: Any, sampling: Any) -> Any: ...

    async def start(self, told: Any) -> None:
        for phase in self.phases:
            told(phase)
            try:
                await asyncio.sleep(1000 if phase == "hanging" else 0)
            finally:
                self.done.append(phase)
            if phase == "failing":
                raise LimbeckError(Reason.MODEL_INVALID)

    async def close(self) -> None:
        self.done.append("closed")


def _desk(teacher: Slow, *more: Any) -> TeacherDesk:
    return TeacherDesk(SimpleNamespace(teacher=SimpleNamespace(make=lambda: teacher)), *more)  # type: ignore[arg-type]


async def _nothing() -> str:
    return "answer"


def test_a_teacher_is_started_once_before_the_first_question_and_its_phases_are_told() -> None:
    heard: list[str] = []
    teacher = Slow("loading", "warming up")
    with _desk(teacher, heard.append) as desk:
        assert desk.ask(_nothing()) == "answer"
        assert heard == []  # nobody has asked for the teacher yet
        assert desk.teacher is teacher
        assert [desk.ask(_nothing()), desk.ask(_nothing())] == ["answer", "answer"]
        assert heard == ["loading", "warming up", ""]
        desk.release()
        assert desk.teacher is teacher
        desk.ask(_nothing())
        assert heard == ["loading", "warming up", ""] * 2


def test_a_signal_ends_a_start_that_hangs() -> None:
    heard: list[str] = []
    teacher = Slow("hanging", "never")

    def check() -> None:
        if heard:
            raise Interrupted("SIGTERM")

    with _desk(teacher, heard.append, check) as desk:
        assert desk.teacher is teacher
        with pytest.raises(Interrupted):
            desk.ask(_nothing())
    assert heard == ["hanging"]
    assert teacher.done == ["hanging", "closed"]


def test_a_start_that_fails_fails_the_question() -> None:
    teacher = Slow("failing")
    with _desk(teacher) as desk:
        assert desk.teacher is teacher
        with pytest.raises(LimbeckError) as caught:
            desk.ask(_nothing())
        assert caught.value.reason is Reason.MODEL_INVALID
    assert teacher.done == ["failing", "closed"]
