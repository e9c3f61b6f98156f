"""Knobs take the value of their step, and say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason, told
from limbeck.functional import Values
from limbeck.training import train
from limbeck.training.knobs import Change, Knobs


class Remembering:
    """A scheduler with state: doubles each time that the loss is told to be higher than before."""

    def __init__(self) -> None:
        self._last, self._value = float("inf"), 1.0

    def value(self, progress: float, metrics: Any) -> float:
        loss = metrics.get("loss", self._last)
        if loss > self._last:
            self._value *= 2
        self._last = loss
        return self._value

    def values(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last, "value": self._value}

    def load_state_dict(self, state: Any) -> None:
        self._last, self._value = state["last"], state["value"]


class Made:
    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def make(self) -> Any:
        return self._scheduler


def test_values_follow_progress_from_the_first_step_on(kit: Any) -> None:
    knobs = Knobs(kit.default_losses(), 4, kit.TEMPERATURES)
    changes = [knobs.advance(step, {}) for step in range(4)]
    assert changes[0] == []
    assert changes[2] == [
        Change(2, "losses.forward_kl.weight", 0.875, 0.75),
        Change(2, "losses.forward_kl.temperature", 2.0, 1.0),
    ]
    assert knobs.values() == {"forward_kl": Values(0.625, 1.0, {}), "cross_entropy": Values(0.1, 1.0, {})}
    assert knobs.temperatures() == (1.0,)


def test_a_temperature_that_is_not_stored_is_refused_and_an_asked_teacher_may_give_any(kit: Any) -> None:
    losses = [kit.loss("forward_kl", temperature=kit.scheduled("linear", start=2.0, end=1.0))]
    knobs = Knobs(losses, 4, (1.0, 2.0))
    knobs.advance(0, {})
    with pytest.raises(LimbeckError, match=r"losses\[0\].temperature: temperature 1.75 is not stored; stored are 1, 2"):
        knobs.advance(1, {})
    free = Knobs(losses, 4, None)
    free.advance(1, {})
    assert free.temperatures() == (1.75,)


def test_a_value_out_of_range_is_refused(kit: Any) -> None:
    losses = [kit.loss("forward_kl", temperature=kit.scheduled("linear", start=1.0, end=-1.0))]
    knobs = Knobs(losses, 4, None)
    knobs.advance(0, {})
    with pytest.raises(LimbeckError) as caught:
        knobs.advance(3, {})
    assert caught.value.reason is Reason.KNOB_INVALID


def test_state_of_schedulers_goes_on(kit: Any) -> None:
    def made() -> Knobs:
        return Knobs([kit.loss("cross_entropy", weight=Made(Remembering()))], 4)

    metrics = [{}, {"loss": 1.0}, {"loss": 3.0}, {"loss": 4.0}]
    whole = made()
    expected = [whole.advance(step, metrics[step]) for step in range(4)]
    first, second = made(), made()
    assert [first.advance(step, metrics[step]) for step in range(2)] == expected[:2]
    second.load_state_dict(first.state_dict())
    assert [second.advance(step, metrics[step]) for step in (2, 3)] == expected[2:]
    assert whole.in_force == {"losses.cross_entropy.weight": 4.0}


def test_a_training_tells_each_change_at_its_step(world: Any, kit: Any, tmp_path: Any) -> None:
    sink = kit.Sink()
    train(world.job(tmp_path), sink)
    changes = [(message.knob, message.before, message.after, step) for message, step in sink.of("KnobChanged")]
    assert [change for change in changes if "temperature" in change[0]] == [
        ("losses.forward_kl.temperature", 2.0, 1.0, 5)  # 5 of 9 steps is the first progress of 0.5 or more
    ]
    weights = [change[2] for change in changes if change[0] == "losses.forward_kl.weight"]
    assert weights == pytest.approx([1.0 - 0.5 * step / 9 for step in range(1, 9)])
    logged = {step: message.values["knobs.losses.forward_kl.temperature"] for message, step in sink.of("Metrics")}
    assert logged == {1: 2.0, 2: 2.0, 4: 2.0, 6: 1.0, 8: 1.0, 9: 1.0}  # of the step that was logged


def test_what_a_scheduler_raises_tells_which_knob_it_was(kit: Any) -> None:
    class Broken(Remembering):
        def value(self, progress: float, metrics: Any) -> float:
            raise ValueError("no value")

    loss = kit.loss("cross_entropy", weight=kit.scheduled("constant", value=1.0))
    knobs = Knobs([replace(loss, knobs={"weight": Made(Broken())})], 4)
    with pytest.raises(ValueError, match="no value") as caught:
        knobs.advance(0, {})
    assert told(caught.value) == "ValueError: no value (in the schedule of losses.cross_entropy.weight)"
