"""A run's folder as the pipeline leaves it, made by hand: two attempts, a rewind, warnings, hostile samples."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson

from limbeck.files import write_atomic, write_json
from limbeck.report import Evaluation, Holdout, ModelFigures, Sample
from limbeck.v1 import event_pb2 as e

RECIPE = """\
teacher: {plugin: transformers, model: org/big-teacher}
student: {from: teacher, layers: [0, 2]}
data: {path: rows.jsonl}
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 64}
  - {plugin: cross_entropy, weight: 0.1}
output: runs/made-by-hand
"""
RESOLVED = """\
teacher: {plugin: transformers, model: org/big-teacher}
losses:
- {plugin: forward_kl, name: forward_kl, weight: 0.9}
- {plugin: cross_entropy, name: cross_entropy, weight: 0.1}
"""
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp; ]]> \x1b[31m\x00 </style>'


class Writer:
    """Writes events with a clock of its own, a second a step unless told otherwise."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, list[str]()
        self.now, self.attempt, self.stage = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 1, ""

    def say(self, message: Any, *, step: int = 0, seconds: float = 1.0) -> None:
        self.now += timedelta(seconds=seconds)
        field = next(f.name for f in e.Event.DESCRIPTOR.oneofs_by_name["kind"].fields if f.message_type.name == message.DESCRIPTOR.name)  # fmt: skip  # noqa: E501
        event = e.Event(sequence=len(self.lines) + 1, attempt=self.attempt, step=step, run_id="r1", stage=self.stage)
        getattr(event, field).CopyFrom(message)
        event.time.FromDatetime(self.now)
        self.lines.append(MessageToJson(event, preserving_proto_field_name=True, indent=None))

    def write(self) -> None:
        write_atomic(self.path, "\n".join(self.lines) + "\n")


def write_events(path: Path) -> None:
    writer = Writer(path)
    writer.say(e.RunStarted(limbeck_version="0.1.0", recipe_digest="d"))
    writer.stage = "label"
    writer.say(e.StageStarted(total=8, unit="rows"))
    writer.say(e.StageFinished(digest="aa", seconds=57.0, figures={"rows": 144, "signal_bytes": 2_000_000}))
    writer.stage = "train"
    writer.say(e.StageStarted(total=54, unit="steps"))
    for step in range(1, 41):
        _metrics(writer, step, bump=step > 20)
    writer.stage = ""
    writer.say(e.RunInterrupted(signal="SIGTERM"))
    writer.attempt, writer.stage = 2, "label"
    writer.say(e.RunStarted(limbeck_version="0.1.0", recipe_digest="d"))
    writer.say(e.StageFinished(digest="aa", skipped=True, figures={"rows": 144, "signal_bytes": 2_000_000}))
    writer.stage = "train"
    writer.say(e.StageStarted(total=54, unit="steps", done=20))
    writer.say(e.Rewound(to_step=20, checkpoint="checkpoints/student/step-20", rejected=["step-40: weights are cut"]))
    writer.say(e.KnobChanged(knob="losses.forward_kl.temperature", before=2.0, after=1.0), step=27)
    for step in range(21, 55):
        _metrics(writer, step, bump=False)
    for _ in range(3):
        writer.say(e.Warning(reason="OBSERVER_DISABLED", message="observer <b>pager</b> raised KeyError"))
    writer.say(e.StageFinished(digest="bb", seconds=34.0, figures={"steps": 54}), step=54)
    writer.stage = "twin"
    writer.say(e.StageStarted(total=54, unit="steps"))
    for step in range(1, 55):
        values = {"loss": 3.2 * math.exp(-step / 30) + 2.2, "losses.cross_entropy": 3.2 * math.exp(-step / 30) + 2.2}
        writer.say(e.Metrics(values=values), step=step)
    writer.say(e.StageFinished(digest="cc", seconds=54.0), step=54)
    writer.stage = ""
    writer.say(e.RunFinished(seconds=200.0))
    writer.write()


def _metrics(writer: Writer, step: int, *, bump: bool) -> None:
    kl = 3.0 * math.exp(-step / 12) + 0.5 + 0.05 * math.sin(step) + (50 if bump else 0)
    values = {
        "loss": 0.9 * kl + 0.3,
        "losses.forward_kl": kl,
        "losses.cross_entropy": 2.4 + math.exp(-step / 20),
        "learning_rate": 3e-4 * min(step / 5, 1) * (1 + math.cos(math.pi * step / 54)) / 2,
        "grad_norm": math.nan if step == 33 else 1.5 + math.cos(step),
        "tokens_per_second": 410.0 + step % 7,
        "knobs.losses.forward_kl.temperature": 2.0 if step < 27 else 1.0,
        "knobs.losses.forward_kl.weight": 0.9,
        "diagnostics.top1_agreement": 1 - math.exp(-step / 25),
    }
    writer.say(e.Metrics(values=values), step=step)


def evaluation() -> Evaluation:
    return Evaluation(
        models={
            "teacher": ModelFigures(parameters=268_098_176, bytes=1_072_392_704, tokens_per_second=820, perplexity=9.1,
                                    cross_entropy=2.208, forward_kl=0.0, top1_agreement=1.0),
            "untrained": ModelFigures(parameters=218_000_000, bytes=872_000_000, tokens_per_second=1210,
                                      perplexity=81234.5, cross_entropy=11.3, forward_kl=8.71, top1_agreement=0.021),
            "twin": ModelFigures(parameters=218_000_000, bytes=872_000_000, tokens_per_second=1214, perplexity=51.2,
                                 cross_entropy=3.93, forward_kl=1.92, top1_agreement=0.401),
            "student": ModelFigures(parameters=218_000_000, bytes=872_000_000, tokens_per_second=1208,
                                    perplexity=27.4, cross_entropy=3.31, forward_kl=1.13, top1_agreement=0.523),
        },
        holdout=Holdout(rows=18, tokens=1093),
        samples=[
            Sample(prompt="The lighthouse keeper had counted the same seven ships every evening, until",
                   reference=" an eighth came in from the fog, without a light.",
                   teacher=" one evening there was an eighth.\n\nHe lit the lamp.", untrained=" the the the the",
                   twin=" the day of the ship was a ship.", student=" one night he saw an eighth on the water."),
            Sample(prompt=HOSTILE, reference=HOSTILE, teacher=HOSTILE, untrained="", student="مرحبا بالعالم"),
        ],
        sampling={"temperature": 0.0, "max_new_tokens": 64},
    )  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run's folder, as far as the report reads it."""
    folder = tmp_path / "made-by-hand"
    write_json(
        folder / "run.json", {"run_id": "0f3c", "limbeck_version": "0.1.0", "created": "2026-01-02T03:04:05+00:00"}
    )
    write_atomic(folder / "recipe.yaml", RECIPE)
    write_atomic(folder / "resolved.yaml", RESOLVED)
    write_events(folder / "events.jsonl")
    write_atomic(folder / "evaluation" / "evaluation.json", evaluation().model_dump_json(indent=2))
    return folder
