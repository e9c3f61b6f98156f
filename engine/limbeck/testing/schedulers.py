"""Conformance of a scheduler. Subclass, name the plugin and some configs, and pytest runs the whole suite.

Example::

    class TestSawtooth(SchedulerConformance):
        plugin = limbeck_mine.SAWTOOTH
        configs = ({"low": 0.0, "high": 1.0},)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from limbeck.interfaces import Scheduler, SchedulerPlugin

GRID = [step / 200 for step in range(201)]
METRICS = {"loss": 1.5, "losses.forward_kl": 0.5}


class SchedulerConformance:
    """The rules of :class:`limbeck.interfaces.Scheduler`. `metrics` of a step may differ: give a series if it asks."""

    plugin: ClassVar[SchedulerPlugin]
    configs: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    metrics: ClassVar[Mapping[str, float]] = METRICS

    def _made(self) -> list[Scheduler]:
        return [self.plugin.factory(self.plugin.config.model_validate(config)) for config in self.configs]

    def _course(self, scheduler: Scheduler, progress: Sequence[float] = GRID) -> list[float]:
        """Values along a training, without metrics at first as in a run."""
        return [scheduler.value(point, self.metrics if point > 0 else {}) for point in progress]

    def test_is_described(self) -> None:
        """A summary, and a description for each field: both are printed."""
        assert self.plugin.summary.strip()
        bare = [name for name, field in self.plugin.config.model_fields.items() if not field.description]
        assert not bare, f"fields without a description: {bare}"

    def test_an_unknown_option_is_refused(self) -> None:
        """A misspelt option must not be ignored."""
        with pytest.raises(ValidationError):
            self.plugin.config.model_validate({**self.configs[0], "no_such_option": 1})

    def test_follows_the_protocol(self) -> None:
        """It has all four methods."""
        for scheduler in self._made():
            assert isinstance(scheduler, Scheduler)

    def test_every_value_is_a_finite_float(self) -> None:
        """At every progress from 0 to 1."""
        for scheduler in self._made():
            course = self._course(scheduler)
            assert all(isinstance(value, float) and math.isfinite(value) for value in course), course

    def test_two_of_one_config_agree(self) -> None:
        """The value follows from config, progress, metrics and state: not from a clock, a global or a draw."""
        for one, other in zip(self._made(), self._made(), strict=True):
            assert self._course(one) == self._course(other)

    def test_listed_values_are_all_that_it_takes(self) -> None:
        """`values()` of a step function misses none: a value that is not listed has no stored signal."""
        for scheduler in self._made():
            listed = scheduler.values()
            if listed is not None:
                assert set(self._course(scheduler)) <= {float(value) for value in listed}

    def test_goes_on_from_its_state(self) -> None:
        """Saved at half time as JSON and loaded into a new one, it takes the course that it would have taken."""
        for whole, first, second in zip(self._made(), self._made(), self._made(), strict=True):
            course = self._course(whole)
            self._course(first, GRID[:100])
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            assert self._course(second, GRID[100:]) == course[100:]
