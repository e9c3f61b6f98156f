"""States of a run: each once, a stop at once from any thread, and how it ended as the last word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Problem, Reason, unexpected
from limbeck.runs.events import EventLog, append_event, read_events
from limbeck.runs.states import OF_STAGE, States, last_state
from limbeck.runs.stopping import StopSignal
from limbeck.signals.messages import error_of
from limbeck.v1 import event_pb2 as pb


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with EventLog(tmp_path / "events.jsonl", "run") as log:
        yield log


def said(log: EventLog) -> list[str]:
    events = read_events(log.path)
    return [pb.RunState.Name(event.state_changed.state).removeprefix("RUN_STATE_") for event in events]


def test_every_stage_has_a_state_and_two_in_a_row_are_one(log: EventLog) -> None:
    states = States(log)
    for stage in OF_STAGE:
        states.enter(stage)
    states.enter("a stage of a test")
    assert said(log) == ["GENERATING", "PREPARING", "LABELLING", "TRAINING", "EVALUATING", "REPORTING"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pause"], ["PAUSING"]),
        (["SIGTERM", "SIGTERM"], ["PAUSING"]),
        (["cancel"], ["CANCELLING"]),
        (["pause", "cancel"], ["PAUSING", "CANCELLING"]),
        (["server"], []),
        (["server", "cancel"], ["CANCELLING"]),
    ],
)
def test_a_stop_is_said_and_stages_that_begin_after_it_are_not(
    names: list[str], expected: list[str], log: EventLog
) -> None:
    states = States(log)
    states.enter("train")
    for name in names:
        states.stopping(name)
    states.enter("evaluate")
    states.close()
    states.stopping("too late")
    assert said(log) == ["TRAINING", *expected]


def test_a_stop_that_cannot_be_said_is_no_error_of_who_asked() -> None:
    class Full:
        def emit(self, message: object) -> None:
            raise LimbeckError(Reason.DISK_FULL)

    States(Full()).stopping("pause")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signal", "state"),
    [
        ("pause", "PAUSED"),
        ("SIGINT", "PAUSED"),
        ("SIGTERM", "PAUSED"),
        ("SIGPIPE", "PAUSED"),
        ("cancel", "CANCELLED"),
        ("server", "QUEUED"),
    ],
)
def test_what_stopped_a_run_is_how_it_ends(signal: str, state: str) -> None:
    found = last_state(pb.RunInterrupted(signal=signal), None, whole=True)
    assert pb.RunState.Name(found.state) == f"RUN_STATE_{state}"


def test_a_failure_carries_its_reason_and_what_to_do() -> None:
    fault = LimbeckError(Reason.DISK_FULL, problems=[Problem("3 bytes are free", file="/secret/x", hint="free some")])
    found = last_state(pb.RunFailed(reason=fault.reason, message=str(fault)), fault, whole=True)
    assert found.state == pb.RUN_STATE_FAILED
    assert (found.error.reason, found.error.message) == ("DISK_FULL", "The disk is full.")
    assert [(problem.message, problem.hint) for problem in found.error.problems] == [("3 bytes are free", "free some")]


@pytest.mark.parametrize(("whole", "state"), [(True, pb.RUN_STATE_SUCCEEDED), (False, pb.RUN_STATE_PAUSED)])
def test_a_run_of_some_stages_only_has_not_succeeded_yet(whole: bool, state: pb.RunState) -> None:
    assert last_state(pb.RunFinished(), None, whole=whole).state == state


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (["pause", "server"], "pause"),
        (["server", "pause"], "pause"),
        (["pause", "cancel", "pause"], "cancel"),
        (["server", "cancel", "server"], "cancel"),
    ],
)
def test_the_weightiest_request_to_stop_counts_and_is_told_at_once(asked: list[str], name: str) -> None:
    stop, told = StopSignal(), list[str]()
    stop.asked = told.append
    threads = [threading.Thread(target=stop.ask, args=(one,)) for one in asked]
    for thread in threads:
        thread.start()
        thread.join()
    assert stop() == told[-1] == name
    assert len(told) == len(set(told))


def test_a_word_between_two_attempts_is_of_the_one_before(tmp_path: Path) -> None:
    created = append_event(tmp_path, "run", pb.StateChanged(state=pb.RUN_STATE_CREATED))
    with EventLog(tmp_path / "events.jsonl", "run") as log:
        log.begin_stage("train")
        log.emit(pb.Metrics(), step=7)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"sequence": "3", "atte')  # as a kill leaves it
    failed = append_event(tmp_path, "run", pb.StateChanged(state=pb.RUN_STATE_FAILED))
    assert (created.sequence, created.attempt) == (1, 0)
    assert (failed.sequence, failed.attempt, failed.step, failed.stage) == (4, 1, 0, "")
    events = list(read_events(tmp_path / "events.jsonl"))
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert events[2].HasField("warning")
    assert events[3] == failed


@pytest.mark.parametrize(
    "error",
    [
        unexpected(RuntimeError("no row in a\udcff.txt")),
        LimbeckError(
            Reason.DATA_INVALID, problems=[Problem("no row in a\udcff.txt", file="a\udcff.txt", field="\ud800")]
        ),
    ],
)
def test_an_error_with_half_a_character_as_names_of_files_may_have_it_is_told_with_its_code(
    error: LimbeckError,
) -> None:
    state = last_state(pb.RunFailed(), error, whole=True)
    assert "no row in a\\udcff.txt" in str(error_of(state.error))


def test_last_lines_say_what_to_do_where_nothing_else_does() -> None:
    said = last_state(pb.RunFailed(), unexpected(RuntimeError("gone")), "Traceback", whole=True).error.problems
    assert "newest checkpoint" in said[-1].hint
    told = LimbeckError(Reason.DATA_INVALID, problems=[Problem("no", hint="yes")])
    assert not last_state(pb.RunFailed(), told, "Traceback", whole=True).error.problems[-1].hint
