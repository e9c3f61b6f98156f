from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from limbeck.schedulers import PLUGINS, PiecewiseConfig, RampConfig
from limbeck.testing.schedulers import SchedulerConformance

BY_NAME = {plugin.name: plugin for plugin in PLUGINS}


class TestConstant(SchedulerConformance):
    plugin = BY_NAME["constant"]
    configs = ({"value": 2.0}, {"value": 0})


class TestLinear(SchedulerConformance):
    plugin = BY_NAME["linear"]
    configs = ({"start": 0.0, "end": 1.0}, {"start": 4, "end": 1, "begin": 0.25, "until": 0.5})


class TestCosine(SchedulerConformance):
    plugin = BY_NAME["cosine"]
    configs = ({"start": 0.0, "end": 1.0}, {"start": 4.0, "end": 1.0, "begin": 0.25, "until": 0.5})


class TestPiecewise(SchedulerConformance):
    plugin = BY_NAME["piecewise"]
    configs = ({"points": [[0, 2.0]]}, {"points": [[0, 2.0], [0.5, 1.0], [1.0, 3.0]]})


def made(name: str, **config: object):
    plugin = BY_NAME[name]
    return plugin.factory(plugin.config.model_validate(config))


def test_every_built_in_has_a_conformance_class():
    tested = {TestConstant, TestLinear, TestCosine, TestPiecewise}
    assert {case.plugin.name for case in tested} == set(BY_NAME)


def test_linear_is_a_line_between_begin_and_until_and_flat_outside():
    scheduler = made("linear", start=4.0, end=2.0, begin=0.2, until=0.6)
    found = [scheduler.value(progress, {}) for progress in (0.0, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([4.0, 4.0, 3.5, 3.0, 2.0, 2.0])


def test_cosine_is_half_a_cosine():
    scheduler = made("cosine", start=0.0, end=1.0)
    found = [scheduler.value(progress, {}) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.0, (1 - math.sqrt(0.5)) / 2, 0.5, 1.0])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ramps_give_exactly_their_ends(name):
    scheduler = made(name, start=0.1, end=0.3)
    assert (scheduler.value(0.0, {}), scheduler.value(1.0, {})) == (0.1, 0.3)
    assert scheduler.values() is None


def test_piecewise_takes_each_value_from_its_point_on():
    scheduler = made("piecewise", points=[[0, 2.0], [0.5, 1.0], [1, 3.0]])
    found = [scheduler.value(progress, {}) for progress in (0.0, 0.4999, 0.5, 0.9999, 1.0)]
    assert found == [2.0, 2.0, 1.0, 1.0, 3.0]


def test_piecewise_lists_each_value_once():
    assert made("piecewise", points=[[0, 2], [0.1, 1], [0.2, 2]]).values() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "at least 1"),
        ([[0.1, 1.0]], "the first progress must be 0"),
        ([[0, 1.0], [0.5, 1.0], [0.5, 2.0]], "must rise"),
        ([[0, 1.0], [1.5, 1.0]], "from 0 to 1"),
        ([[0, 1.0, 2.0]], "at most 2"),
        ([[0, "1"]], "valid number"),
    ],
)
def test_piecewise_refuses_points_that_are_no_step_function(points, said):
    with pytest.raises(ValidationError, match=said):
        PiecewiseConfig.model_validate({"points": points})


def test_ramps_refuse_to_end_before_they_begin():
    with pytest.raises(ValidationError, match=r"begin \(0.5\) must be below until \(0.5\)"):
        RampConfig(start=0, end=1, begin=0.5, until=0.5)
