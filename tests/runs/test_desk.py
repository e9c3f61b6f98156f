"""The teacher between stages: one at a time, and its memory goes when it is let go."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from limbeck.interfaces import ScoreItem, Want
from limbeck.runs.desk import TeacherDesk
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
