"""The inbox of a training, and the journal of what its knobs were given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.steering import Journal, Steer, Steering

Opened = Callable[[Path], Journal]


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Journal]]:
    """Open a journal, and close it in the end."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(closing(Journal(folder)))


class Wheel:
    """Knobs that take what is not negative."""

    def __init__(self) -> None:
        self.given: list[Steer] = []

    def faults(self, values: Any) -> list[str]:
        return [f"{name} must not be {value:g}" for name, value in values.items() if value < 0]

    def steer(self, steer: Steer) -> None:
        self.given.append(steer)


class Sink:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def emit(self, message: Any, *, step: int | None = None) -> None:
        self.said.append(message)


def test_values_are_on_disk_before_they_are_given_and_again_after_a_restart(tmp_path: Path, opened: Opened) -> None:
    seen: list[list[Steer]] = []

    class Watching(Wheel):
        def steer(self, steer: Steer) -> None:
            seen.append(Journal(tmp_path).steers)

    steering = Steering()
    steering.put(1, {"a": 0.5, "b": 0.1})
    steering.put(2, {"a": 2.0})
    journal = opened(tmp_path)
    assert steering.steer(7, Watching(), journal, Sink().emit) == [1, 2]  # type: ignore[arg-type]
    first, second = Steer(1, 7, {"a": 0.5, "b": 0.1}), Steer(2, 7, {"a": 2.0})
    assert seen == [[first], [first, second]]
    assert Journal(tmp_path).steers == [first, second]
    assert steering.steer(8, Wheel(), journal, Sink().emit) == []  # type: ignore[arg-type]


def test_an_id_that_came_before_is_confirmed_and_not_given_again(tmp_path: Path, opened: Opened) -> None:
    for start in range(2):
        steering, wheel, journal = Steering(), Wheel(), opened(tmp_path)
        steering.put(1, {"a": float(start)})
        steering.put(1, {"a": 9.0})
        assert steering.steer(start, wheel, journal, Sink().emit) == [1, 1]  # type: ignore[arg-type]
        assert len(wheel.given) == 1 - start
    assert Journal(tmp_path).steers == [Steer(1, 0, {"a": 0.0})]


def test_of_values_that_come_together_all_are_taken_or_none(tmp_path: Path, opened: Opened) -> None:
    steering, wheel, sink = Steering(), Wheel(), Sink()
    steering.put(1, {"a": 1.0, "b": -1.0})
    assert steering.steer(3, wheel, opened(tmp_path), sink.emit) == [1]  # type: ignore[arg-type]
    assert wheel.given == []
    assert [(said.reason, said.message) for said in sink.said] == [
        ("KNOB_REFUSED", "not changed to a 1, b -1: b must not be -1")
    ]
    assert not (tmp_path / "knobs.jsonl").exists()


def test_a_line_that_a_crash_tore_was_never_in_force_and_is_told_of(tmp_path: Path, opened: Opened) -> None:
    journal = Journal(tmp_path)
    journal.add(Steer(1, 3, {"a": 1.0}))
    journal.close()
    with (tmp_path / "knobs.jsonl").open("a") as file:
        file.write('{"id": 2, "step": 4, "val')
    steering, wheel, sink = Steering(), Wheel(), Sink()
    steering.put(2, {"a": 2.0})
    assert steering.steer(4, wheel, opened(tmp_path), sink.emit) == [2]  # type: ignore[arg-type]
    assert wheel.given == [Steer(2, 4, {"a": 2.0})]
    assert [said.reason for said in sink.said] == ["LOG_MENDED"]
    assert [steer.id for steer in Journal(tmp_path).steers] == [1, 2]


def test_damage_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "knobs.jsonl").write_text('\0\0\n{"id": 2, "step": 4, "values": {}}\n')
    with pytest.raises(LimbeckError) as caught:
        Journal(tmp_path)
    assert caught.value.reason is Reason.LOG_DAMAGED


def test_a_checkpoint_can_be_asked_for_between_begin_and_finish() -> None:
    refused: list[tuple[Any, Reason]] = []
    steering = Steering(refused=lambda name, error: refused.append((name, error.reason)))
    steering.request_checkpoint("before")
    steering.begin()
    steering.request_checkpoint("in")
    assert steering.take_checkpoints() == ["in"]
    steering.request_checkpoint("late")
    steering.finish(Sink())
    steering.request_checkpoint("after")
    assert refused == [(name, Reason.RUN_STATE) for name in ("before", "late", "after")]
    assert steering.take_checkpoints() == []


def test_values_after_the_training_are_refused_and_confirmed_also_where_nothing_can_be_said_any_more() -> None:
    class Closed(Sink):
        def emit(self, message: Any, *, step: int | None = None) -> None:
            raise ValueError("write to closed file")

    for sink in (Sink(), Closed()):
        applied: list[int] = []
        steering = Steering(applied=applied.append)
        steering.put(1, {"a": 1.0})
        steering.finish(sink)
        steering.put(2, {"a": 2.0})
        assert applied == [1, 2]
        if not isinstance(sink, Closed):
            assert [said.message for said in sink.said] == [
                f"not changed to a {value}: the training is over" for value in (1, 2)
            ]


def test_requests_of_many_threads_are_all_taken_once(tmp_path: Path, opened: Opened) -> None:
    steering, wheel, journal = Steering(), Wheel(), opened(tmp_path)
    steering.begin()

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            steering.put(number, {"a": float(number)})
            steering.request_checkpoint(number)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    confirmed, checkpoints = list[int](), list[Any]()
    while any(thread.is_alive() for thread in threads) or len(confirmed) < 200:
        confirmed += steering.steer(0, wheel, journal, Sink().emit)  # type: ignore[arg-type]
        checkpoints += steering.take_checkpoints()
    assert sorted(confirmed) == sorted([*checkpoints, *steering.take_checkpoints()]) == list(range(200))
    assert sorted(steer.id for steer in wheel.given) == list(range(200))
