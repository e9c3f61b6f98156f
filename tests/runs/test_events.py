"""The run's history: gap-free, mended, the same for observers."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.runs.events import KINDS, EventLog, read_events
from limbeck.v1 import event_pb2
from limbeck.v1.event_pb2 import Event, Metrics, RunFinished, RunStarted, StageFinished

CASES = Path(__file__).parent.parent / "data" / "C42"


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_the_json_mapping_one_a_line_and_gap_free_over_attempts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(3):
        with EventLog(path, "run") as log:
            log.emit(RunStarted(limbeck_version="1"))
            log.begin_stage("train")
            log.emit(Metrics(values={"loss": math.nan, "grad_norm": math.inf, "tokens": 2.0**60}), step=7)
            log.emit(StageFinished(skipped=True))
            log.finish(RunFinished(seconds=1.5))
    lines = _lines(path)
    assert [line["sequence"] for line in lines] == [str(n) for n in range(1, 13)]
    assert [line["attempt"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4
    assert lines[1]["metrics"] == {"values": {"loss": "NaN", "grad_norm": "Infinity", "tokens": 2.0**60}}
    assert lines[2]["step"] == "7"
    assert lines[2]["stage"] == "train"
    assert "stage" not in lines[3]
    assert "step" not in lines[3]
    events = list(read_events(path))
    assert math.isnan(events[1].metrics.values["loss"])
    assert {event.run_id for event in events} == {"run"}
    assert all(event.time.seconds > 0 for event in events)


def test_every_kind_of_event_can_be_said(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl", "run") as log:
        for name in KINDS:
            log.emit(getattr(event_pb2, name)())
    assert [event.WhichOneof("kind") for event in read_events(tmp_path / "e.jsonl")] == list(KINDS.values())


@pytest.mark.parametrize(("name", "kept"), [("no_newline", 6), ("torn", 5), ("torn_utf8", 5)])
def test_a_torn_tail_is_mended_and_said_once(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / "events.jsonl"
    shutil.copy(CASES / f"{name}.jsonl", path)
    with EventLog(path, "run") as log:
        log.emit(RunStarted())
    with EventLog(path, "run"):
        pass
    lines = _lines(path)
    assert [int(str(line["sequence"])) for line in lines] == list(range(1, kept + 3))
    assert [line["warning"]["reason"] for line in lines if "warning" in line] == ["LOG_MENDED"]  # type: ignore[index]


def test_a_hole_in_the_middle_is_an_error_that_names_the_line_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    shutil.copy(CASES / "nul_hole.jsonl", path)
    before = path.read_bytes()
    with pytest.raises(LimbeckError) as caught:
        EventLog(path, "run")
    assert caught.value.reason is Reason.LOG_DAMAGED
    assert caught.value.problems[0].line == 3
    assert path.read_bytes() == before


def test_a_lost_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"sequence": "1", "attempt": 1}\n{"sequence": "3", "attempt": 1}\n')
    with EventLog(path, "run"):
        pass
    assert _lines(path)[-1]["warning"]["reason"] == "HISTORY_GAP"  # type: ignore[index]


def test_an_observer_that_raises_is_named_and_disabled_and_the_others_go_on(tmp_path: Path) -> None:
    seen: list[int] = []
    calls: list[int] = []

    def broken(event: Event) -> None:
        calls.append(event.sequence)
        raise SystemExit("no network")

    observers = [("broken", broken), ("good", lambda event: seen.append(event.sequence))]
    with EventLog(tmp_path / "e.jsonl", "run", observers=observers) as log:
        for step in range(20):
            log.emit(Metrics(), step=step)
        log.finish(RunFinished())
    events = list(read_events(tmp_path / "e.jsonl"))
    told = [event.warning for event in events if event.HasField("warning")]
    assert [warning.reason for warning in told] == ["OBSERVER_DISABLED"]
    assert "broken raised SystemExit: no network" in told[0].message
    assert calls == [1]
    assert seen == [event.sequence for event in events]
    assert events[-1].HasField("run_finished")


def test_a_slow_observer_loses_the_oldest_which_is_counted_and_told(tmp_path: Path) -> None:
    go, seen = threading.Event(), list[Event]()

    def slow(event: Event) -> None:
        go.wait(30)
        seen.append(event)

    with EventLog(tmp_path / "e.jsonl", "run", observers=[("slow", slow)], queue_length=3) as log:
        for step in range(10):
            log.emit(Metrics(), step=step)
        go.set()
        log.finish(RunFinished())
    events = list(read_events(tmp_path / "e.jsonl"))
    messages = [event.warning.message for event in events if event.HasField("warning")]
    assert messages[0] == "observer slow is too slow; its oldest events are dropped"
    lost = int(messages[1].split("did not get ")[1].split()[0])
    heard = {event.sequence for event in seen}
    assert lost == len(events) - len(heard)
    assert events[-1].sequence in heard
    assert [event.sequence for event in seen] == sorted(heard)


def test_an_observer_cannot_change_what_others_see(tmp_path: Path) -> None:
    seen: list[str] = []
    observers = [
        ("rude", lambda event: event.ParseFromString(b"")),
        ("good", lambda event: seen.append(event.run_id)),
    ]
    with EventLog(tmp_path / "e.jsonl", "run", observers=observers) as log:
        log.emit(Metrics())
        log.finish(RunFinished())
    assert seen == ["run", "run"]


def test_the_display_gets_every_event(tmp_path: Path) -> None:
    shown: list[Event] = []
    with EventLog(tmp_path / "e.jsonl", "run", display=shown.append) as log:
        log.emit(Metrics(values={"loss": 1.0}), step=1)
        log.finish(RunFinished())
    assert shown == list(read_events(tmp_path / "e.jsonl"))
