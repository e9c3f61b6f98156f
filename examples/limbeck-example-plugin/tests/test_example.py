"""The whole conformance suite for two classes of three lines."""

from __future__ import annotations

import torch

from limbeck.interfaces import Support
from limbeck.testing.losses import TokenLossConformance
from limbeck.testing.schedulers import SchedulerConformance
from limbeck.v1.event_pb2 import Event, StageFinished
from limbeck_example import SAWTOOTH, TOTAL_VARIATION, limbeck_event
from limbeck_example.total_variation import TotalVariation


class TestTotalVariation(TokenLossConformance):
    plugin = TOTAL_VARIATION
    configs = ({}, {"temperature": 2.0, "tail": "drop"})


class TestSawtooth(SchedulerConformance):
    plugin = SAWTOOTH
    configs = ({"low": 0.5, "high": 2.0}, {"low": -1.0, "high": 1.0, "steps": 3, "teeth": 5})


def test_total_variation_of_two_coins():
    student = Support(torch.tensor([[0.1]]).log(), torch.tensor([0.9]).log())
    teacher = Support(torch.tensor([[0.9]]).log(), torch.tensor([0.1]).log())
    torch.testing.assert_close(TotalVariation()(student, teacher, {}), torch.tensor([0.8]))


def test_sawtooth_rises_and_falls_back():
    scheduler = SAWTOOTH.factory(SAWTOOTH.config(low=1.0, high=2.0, steps=2, teeth=2))
    assert [scheduler.value(progress, {}) for progress in (0.0, 0.3, 0.5, 0.8, 1.0)] == [1.0, 2.0, 1.0, 2.0, 2.0]


def test_the_observer_writes_finished_stages(tmp_path, monkeypatch):
    log = tmp_path / "stages.jsonl"
    monkeypatch.setenv("LIMBECK_EXAMPLE_LOG", str(log))
    limbeck_event(Event(sequence=3, stage="label", stage_finished=StageFinished()))
    limbeck_event(Event(sequence=4, stage="train"))
    assert log.read_text() == '{"sequence": 3, "stage": "label"}\n'
