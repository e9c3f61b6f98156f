"""WatchRun: each event once and in order, over any number of connections, to the run's end."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.client import connect, connect_async
from limbeck.errors import LimbeckError, Reason
from limbeck.runs.events import EventLog, read_events, to_json
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Log, Metrics, Progress, Rewound, RunState, StateChanged

from .proxy import between
from .scripted import client_of
from .scripted_training import RUN, Runs, alive, event, events, hosting, run_message


def sequences(found) -> list[int]:
    """Sequences, each with its own content."""
    found = list(found)
    for one in found:
        assert one.step == one.sequence
        if one.HasField("metrics"):
            assert one.metrics.values["loss"] == one.sequence
    return [one.sequence for one in found]


def refused(runs: Runs, after: int | None = None, **times: float) -> LimbeckError:
    with hosting(runs) as address, client_of(address, **times) as client, pytest.raises(LimbeckError) as caught:
        list(client.watch(RUN, after))
    return caught.value


def test_events_come_in_order_to_the_runs_end():
    runs = Runs([events(1, 2), events(3), alive(3), events(4, event(5, "succeeded"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2, 3, 4, 5]
    (request,) = runs.asked("WatchRun")
    assert request.run_id == RUN
    assert not request.HasField("after_sequence")
    assert not runs.asked("GetRun")


@pytest.mark.parametrize("after", [0, 3, (1 << 64) - 2])
def test_a_cursor_is_sent_to_the_digit_and_zero_is_not_unset(after):
    runs = Runs([events(event(after + 1, "cancelled"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN, after)) == [after + 1]
    (request,) = runs.asked("WatchRun")
    assert request.HasField("after_sequence")
    assert request.after_sequence == after


@pytest.mark.parametrize("after", [-1, 1 << 64, 1.0, "3", True])
def test_a_cursor_that_is_none_is_refused(after):
    with connect("127.0.0.1:7411") as client, pytest.raises(LimbeckError, match=r"after: is .*, allowed") as caught:
        client.watch(RUN, after)
    assert caught.value.reason is Reason.REQUEST_INVALID


def test_where_the_oldest_is_not_the_first_it_begins_with_that():
    runs = Runs([events(7, 8), grpc.StatusCode.UNAVAILABLE], [events(9, event(10, "failed"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [7, 8, 9, 10]
    assert runs.asked("WatchRun")[1].after_sequence == 8


@pytest.mark.parametrize("fault", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, Reason.SERVER_UNAVAILABLE])
def test_after_a_lost_connection_it_goes_on_where_it_was(fault):
    runs = Runs([fault], [events(1, 2), fault], [fault], [events(3), alive(3), fault], [events(event(4, "succeeded"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2, 3, 4]
    asked = [one.after_sequence if one.HasField("after_sequence") else None for one in runs.asked("WatchRun")]
    assert asked == [None, None, 2, 2, 3]


def test_a_call_that_ends_well_before_the_run_does_is_a_lost_one():
    runs = Runs([events(1, 2)], [events(3), events(event(4, "paused"))], [events(event(5, "failed"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2, 3, 4, 5]
    assert len(runs.asked("GetRun")) == 2


def test_who_has_seen_all_of_a_run_that_ended_is_told_so():
    runs = Runs([])
    runs.answers["GetRun"] = pb.GetRunResponse(run=run_message("succeeded", last_sequence=9))
    with hosting(runs) as address, connect(address) as client:
        assert list(client.watch(RUN, 9)) == []


def test_an_end_that_leaves_out_the_last_events_is_no_end():
    runs = Runs([events(1)], [events(event(2, "succeeded"))])
    runs.answers["GetRun"] = pb.GetRunResponse(run=run_message("succeeded", last_sequence=2))
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2]


def test_a_run_that_failed_and_was_resumed_goes_on():
    runs = Runs([events(1, event(2, "failed"), event(3, "queued")), events(4), events(event(5, "succeeded"))])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2, 3, 4, 5]


def test_what_was_seen_is_dropped():
    runs = Runs([events(1, 2), events(1, 2, 3), events(2), events(3, event(4, "succeeded")), events(4)])
    with hosting(runs) as address, connect(address) as client:
        assert sequences(client.watch(RUN)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("script", "after", "told"),
    [
        ([events(1, 3)], None, "sequence 3 came where 2 was due"),
        ([events(1), events(4)], None, "sequence 4 came where 2 was due"),
        ([events(2)], 0, "sequence 2 came where 1 was due"),
        ([events(9)], 7, "sequence 9 came where 8 was due"),
        ([events(0)], None, "sequence 0 came where 1 was due"),
    ],
)
def test_a_gap_is_an_error_and_not_asked_again(script, after, told):
    runs = Runs(script)
    error = refused(runs, after)
    assert error.reason is Reason.LOG_DAMAGED
    assert told in str(error)
    assert len(runs.asked("WatchRun")) == 1


def test_a_gap_over_a_reconnect_is_one_too():
    assert "sequence 4 came where 3 was due" in str(
        refused(Runs([events(1, 2), Reason.SERVER_UNAVAILABLE], [events(4)]))
    )


@pytest.mark.parametrize(
    "reason", [Reason.RUN_UNKNOWN, Reason.CURSOR_INVALID, Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED]
)
def test_the_servers_errors_are_the_callers(reason):
    runs = Runs([events(1), reason])
    assert refused(runs).reason is reason
    assert len(runs.asked("WatchRun")) == 1


def test_a_token_that_ends_meanwhile_ends_it():
    runs = Runs([events(1), Reason.SERVER_UNAVAILABLE], [Reason.UNAUTHENTICATED])
    assert refused(runs).reason is Reason.UNAUTHENTICATED


def test_a_silent_server_is_left_and_asked_again():
    """Case C44: a proxy that answers pings for a far side that is gone."""
    runs = Runs([events(1), 60.0], [alive(1), 60.0], [events(event(2, "succeeded"))])
    with hosting(runs) as address, client_of(address, silence=0.3) as client:
        assert sequences(client.watch(RUN)) == [1, 2]
    assert [one.after_sequence for one in runs.asked("WatchRun")] == [0, 1, 1]


def test_a_server_that_stays_silent_is_given_up():
    error = refused(Runs([events(1)], [60.0]), silence=0.1, retry_for=0.5)
    assert error.reason in (Reason.PEER_SILENT, Reason.SERVER_UNAVAILABLE)
    assert "tried for" in str(error)


def test_nobody_there_is_told_soon():
    with client_of("127.0.0.1:9", timeout=0.5, retry_for=600) as client, pytest.raises(LimbeckError) as caught:
        list(client.watch(RUN))
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE


def test_a_run_may_rest_longer_than_patience_lasts_and_nobody_is_warned(caplog):
    """Signs of life, then the end of an idle call: again and again, with nothing new."""
    idle = [0.15, alive(1), Reason.SERVER_UNAVAILABLE]
    runs = Runs([events(1), *idle], *[idle] * 5, [events(event(2, "succeeded"))])
    with (
        caplog.at_level(logging.WARNING, "limbeck.client"),
        hosting(runs) as address,
        client_of(address, retry_for=0.3) as client,
    ):
        assert sequences(client.watch(RUN)) == [1, 2]
    assert len(runs.asked("WatchRun")) == 7
    assert not caplog.records


def test_asyncio_and_leaving_early():
    runs = Runs([events(1, 2), 60.0])

    async def main(address: str) -> None:
        async with connect_async(address) as client:
            async for one in client.watch(RUN):
                assert one.sequence == 1
                break

    with hosting(runs) as address:
        asyncio.run(main(address))


def test_a_client_that_is_closed_ends_its_watches():
    with hosting(Runs([events(1), 60.0])) as address:
        client = connect(address)
        stream = client.watch(RUN)
        next(stream)
        client.close()
        with pytest.raises(LimbeckError) as caught:
            next(stream)
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE


FAULTS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, Reason.SERVER_UNAVAILABLE, None)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from(FAULTS)), max_size=5),
    st.integers(0, 1 << 16),
)
def test_whatever_happens_each_event_comes_once(faults, seed):
    """Connections are lost anywhere; each begins anew a little before what was seen, in messages of any size."""
    draw, history = random.Random(seed), [*map(event, range(1, 12)), event(12, "succeeded")]
    runs = Runs()

    async def watch(request, context):
        runs.requests.append(("WatchRun", request))
        most, back, fault = faults.pop(0) if faults else (len(history), 0, None)
        rest = history[max(request.after_sequence - back, 0) :]
        whole = most >= len(rest)
        rest = rest[:most]
        while rest:
            size = draw.randint(1, 3)
            yield events(*rest[:size])
            rest = rest[size:]
        if not whole:
            await runs.refuse(fault, context)

    runs.WatchRun = watch
    with hosting(runs) as address, client_of(address, retry_for=20) as client:
        assert sequences(client.watch(RUN)) == list(range(1, 13))


def test_all_that_comes_over_dropped_connections_is_events_jsonl(tmp_path: Path):
    """A history as a run writes it, read by offset and sent through a network that drops every connection."""
    path = tmp_path / "events.jsonl"
    with EventLog(path, RUN) as log:
        for step in range(1, 301):
            log.emit(Progress(done=step, total=300, unit="steps"), step=step)
            log.emit(Metrics(values={"loss": float("nan") if step == 7 else 1 / step}), step=step)
        log.emit(Rewound(to_step=200, checkpoint="checkpoints/student/checkpoint-200"), step=200)
        log.emit(Log(level="ERROR", logger="a", message="é \u2028 \0 x" * 100))
        log.emit(StateChanged(state=RunState.RUN_STATE_SUCCEEDED))
    history = list(read_events(path))
    runs = Runs()

    async def watch(request, context):
        runs.requests.append(("WatchRun", request))
        for at in range(request.after_sequence, len(history), 7):
            yield events(*history[at : at + 7])

    runs.WatchRun = watch
    with (
        hosting(runs) as address,
        between(address, most=20_000, seed=5) as (proxy, reached),
        client_of(reached, retry_for=30) as client,
    ):
        found = [json.loads(to_json(one)) for one in client.watch(RUN)]
    assert proxy.dropped >= 3
    assert found == [json.loads(line) for line in path.read_text("utf-8").strip().split("\n")]
