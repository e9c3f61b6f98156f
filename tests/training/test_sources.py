"""Batch sources: the store, and a teacher that is asked ahead, give the same training."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import ScoreItem, Want
from limbeck.training import BatchSource, CachedSource, NoSource, OnlineSource, train


class Asked:
    """A teacher in process; remembers what it was asked, and from which thread."""

    def __init__(self, world: Any, kit: Any, fail: str = "") -> None:
        self._signals = {s.index: kit.make_signal(world.teacher, s) for s in world.sequences}
        self.questions: list[tuple[int, ...]] = []
        self.threads: set[int] = set()
        self.at_once = self.most_at_once = 0
        self._fail = fail

    def info(self) -> Any:
        raise NotImplementedError

    async def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Any], None]:
        self.questions.append(tuple(item.item_id for item in items))
        self.threads.add(threading.get_ident())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self._fail == "raises":
            raise LimbeckError(Reason.SCORING_FAILED, "The teacher is tired.")
        for item in reversed(items):  # answers come in any order
            if self._fail != "forgets":
                yield item.item_id, self._signals[item.item_id]

    def generate(self, prompts: Any, sampling: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass


WANT = Want(top_k=8, temperatures=(1.0, 2.0), target=True)


def sources(world: Any, kit: Any) -> dict[str, BatchSource]:
    return {
        "none": NoSource(),
        "cached": CachedSource(world.store),
        "online": OnlineSource(Asked(world, kit), WANT),
        "online, not ahead": OnlineSource(Asked(world, kit), WANT, prefetch=0),
    }


@pytest.mark.parametrize("name", ["none", "cached", "online", "online, not ahead"])
def test_every_source_gives_one_signal_a_sequence_in_order(world: Any, kit: Any, name: str) -> None:
    source = sources(world, kit)[name]
    assert isinstance(source, BatchSource)
    chosen = [world.sequences[index] for index in (7, 2, 5)]
    source.ahead(chosen)
    for _ in range(2):  # the same again
        signals = source.signals_for(chosen)
        assert len(signals) == 3
        for sequence, signal in zip(chosen, signals, strict=True):
            if name == "none":
                assert signal is None
            else:
                assert signal is not None
                assert (signal.first_row, signal.n) == (sequence.first_row, sequence.n)
                assert np.array_equal(signal.top_k.ids, kit.make_signal(world.teacher, sequence).top_k.ids)
    source.close()
    source.close()
    assert len(source.signals_for(chosen[:1])) == 1  # a twin may use it after the student
    source.close()


def test_stored_and_asked_signals_train_the_same_bits(world: Any, kit: Any, tmp_path: Path) -> None:
    cached = train(world.job(tmp_path / "cached"), kit.Sink())
    teacher = Asked(world, kit)
    online = train(world.job(tmp_path / "online", source=OnlineSource(teacher, WANT)), kit.Sink())
    for one, other in zip(cached.model.parameters(), online.model.parameters(), strict=True):
        assert one.detach().numpy().tobytes() == other.detach().numpy().tobytes()
    # Ten rows by two, three times: each micro-batch was asked for once, and none beyond the end.
    assert len(teacher.questions) == 15
    assert sorted(index for question in teacher.questions for index in question) == sorted([*range(10)] * 3)
    assert threading.get_ident() not in teacher.threads
    assert teacher.most_at_once == 1


def test_the_coming_batches_are_asked_for_while_one_is_trained(world: Any, kit: Any) -> None:
    teacher = Asked(world, kit)
    source = OnlineSource(teacher, WANT, prefetch=1)
    first, second = world.sequences[:2], world.sequences[2:4]
    source.ahead(first)
    source.ahead(second)
    source.signals_for(first)
    deadline = time.monotonic() + 30
    while len(teacher.questions) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert teacher.questions == [(0, 1), (2, 3)]  # the second without being needed yet
    source.signals_for(second)
    assert len(teacher.questions) == 2
    source.close()


def test_a_question_that_is_dropped_has_ended_when_the_source_is_closed(world: Any, kit: Any) -> None:
    asked, ended = threading.Event(), threading.Event()

    class Silent(Asked):
        async def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[Any, None]:
            asked.set()
            try:
                await asyncio.Event().wait()
                yield
            finally:
                ended.set()

    source = OnlineSource(Silent(world, kit), WANT)
    source.ahead(world.sequences[:2])
    source.ahead(world.sequences[2:4])
    assert asked.wait(30)
    source.close()
    assert ended.is_set()


@pytest.mark.parametrize(("fail", "message"), [("raises", "The teacher is tired"), ("forgets", "gave no signal")])
def test_a_teacher_that_fails_ends_the_training_with_its_reason(
    world: Any, kit: Any, tmp_path: Path, fail: str, message: str
) -> None:
    source = OnlineSource(Asked(world, kit, fail), WANT)
    with pytest.raises(LimbeckError, match=message) as caught:
        train(world.job(tmp_path, source=source), kit.Sink())
    assert caught.value.reason is Reason.SCORING_FAILED


def test_a_store_of_other_rows_is_refused(world: Any, kit: Any, tmp_path: Path) -> None:
    other = kit.make_sequences(10, seed=9)
    with pytest.raises(LimbeckError) as caught:
        train(world.job(tmp_path, sequences=other), kit.Sink())
    assert caught.value.reason is Reason.SIGNAL_INVALID
