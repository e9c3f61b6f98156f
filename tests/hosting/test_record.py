"""What a run's history makes of what is known of it."""

from __future__ import annotations

from limbeck.hosting.record import Record
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb


def metrics(sequence: int, stage: str, **values: float) -> ev.Event:
    return ev.Event(sequence=sequence, attempt=1, stage=stage, metrics=ev.Metrics(values=values))


def test_figures_are_of_the_student_not_of_its_twin():
    record = Record(1, "", pb.Run(run_id="a"))
    record.apply(metrics(1, "generate", cost=3.0))
    record.apply(metrics(2, "train", loss=2.0, tokens=7.0))
    record.apply(metrics(3, "train", loss=1.0))
    record.apply(metrics(4, "twin", loss=9.0))
    assert dict(record.run.metrics) == {"cost": 3.0, "tokens": 7.0, "loss": 1.0}
    assert record.run.last_sequence == 4
