"""What a run's history makes of what is known of it."""

from __future__ import annotations

from typing import Any

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


def test_how_far_a_run_has_come_is_told_where_it_rests_too_and_never_more():
    record = Record(1, "", pb.Run(run_id="a"))

    def far(stage: str, **kind: Any) -> tuple[int, int, str] | None:
        """How far it is after one more event."""
        record.apply(ev.Event(sequence=record.run.last_sequence + 1, stage=stage, **kind))
        said = record.run.progress
        return (said.done, said.total, said.unit) if record.run.HasField("progress") else None

    def state(name: str) -> ev.StateChanged:
        return ev.StateChanged(state=ev.RunState.Value(f"RUN_STATE_{name}"))

    skipped = ev.StageFinished(skipped=True)
    rows = ev.Progress(done=3, total=9, unit="rows")
    assert far("label", progress=rows) == (3, 9, "rows")
    assert far("label", stage_finished=ev.StageFinished()) is None
    assert far("train", stage_started=ev.StageStarted(total=200, unit="steps")) == (0, 200, "steps")
    assert far("train", progress=ev.Progress(done=47, total=200, unit="steps")) == (47, 200, "steps")
    for name in ("PAUSING", "PAUSED", "QUEUED", "FAILED", "LABELLING"):
        assert far("", state_changed=state(name)) == (47, 200, "steps")
    assert far("label", stage_finished=skipped) == (47, 200, "steps")
    assert far("train", rewound=ev.Rewound(to_step=40)) == (40, 200, "steps")
    assert far("train", stage_finished=ev.StageFinished()) is None
    assert far("evaluate", progress=rows) == (3, 9, "rows")
    assert far("train", rewound=ev.Rewound(to_step=40)) is None
    assert far("report", progress=rows) == (3, 9, "rows")
    assert far("", state_changed=state("SUCCEEDED")) is None
