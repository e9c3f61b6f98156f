"""What becomes of items between clients and worker, without a process."""

from __future__ import annotations

import asyncio
from itertools import count

from limbeck.errors import LimbeckError, Reason
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.service import lane as lane_module
from limbeck.service.lane import Lane
from limbeck.v1 import error_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .hosting import Box, item

TOP = pb.Want(top_k=4)
DEATH = LimbeckError(Reason.TEACHER_UNAVAILABLE)


def new(batch_tokens: int = 1000) -> Lane:
    return Lane(Reason.SCORING_FAILED, batch_tokens, count(1))


def asked(lane: Lane) -> list[int]:
    """Items of the next call."""
    frames = lane.next_call()
    return [message.item_id for message in frames[0].score.items] if frames else []


def done(call: int, reason: str | None = None) -> internal.CallDone:
    error = error_pb2.Error(reason=reason) if reason else None
    return internal.CallDone(call=call, error=error)


def answer(call: int, place: int, *, last: bool = True) -> internal.Answer:
    return internal.Answer(call=call, place=place, last=last, response=b"x")


def test_the_worker_has_two_calls_at_most() -> None:
    lane, box = new(6), Box()
    lane.add("a", TOP, [item(name) for name in range(4)], box)
    assert [asked(lane), asked(lane), asked(lane)] == [[0], [1], []]
    lane.answer(answer(1, 0))
    lane.done(done(1))
    assert [asked(lane), asked(lane)] == [[2], []]
    assert (lane.batches, lane.tokens, lane.waiting) == (3, 18, 1)


def test_a_group_s_dropped_items_are_asked_and_cancelled_so_that_the_others_keep_their_bits() -> None:
    lane, box = new(), Box()
    lane.add("a", TOP, [item(name) for name in range(3)], box, alone=True)
    assert lane.cancel(box, [1]) == []
    score, cancel = lane.next_call()
    assert [message.item_id for message in score.score.items] == [0, 1, 2]
    assert list(cancel.cancel.places) == [1]
    assert [list(frame.cancel.places) for frame in lane.cancel(box, [2])] == [[2]]
    for place in range(3):
        lane.answer(answer(1, place))
    assert box.complete == [0]


def test_an_item_whose_answer_had_begun_is_not_asked_again() -> None:
    lane, box = new(), Box()
    lane.add("a", TOP, [item(0), item(1)], box)
    lane.next_call()
    lane.answer(answer(1, 0, last=False))
    lane.done(done(1, "SCORING_FAILED"))
    assert (list(box.failures), asked(lane)) == ([0], [1])


def test_a_call_that_ends_with_items_left_and_no_error_is_an_error() -> None:
    lane, box = new(), Box()
    lane.add("a", TOP, [item(0)], box)
    lane.next_call()
    lane.done(done(1))
    assert box.failures[0].reason is Reason.INTERNAL


def test_what_three_workers_died_of_is_never_asked_again() -> None:
    async def go() -> None:
        lane, box = new(), Box()
        for name in range(lane_module.MOST_DEATHS):  # under another name each time
            lane.add("a", TOP, [item(name, ids=b"\1\0\0\0" * 6)], box)
            assert asked(lane) == [name]
            lane.lose(DEATH)
        lane.add("b", TOP, [item(7, ids=b"\1\0\0\0" * 6), item(8)], box)
        lane.add("b", TOP, [item(9, ids=b"\1\0\0\0" * 6)], box)
        lane.cancel(box, [9])
        assert asked(lane) == [8]
        assert 7 not in box.failures
        await asyncio.sleep(0)
        assert box.failures[7].reason is Reason.SCORING_FAILED
        assert box.failures[7].problems[0].field == "item 7"
        assert 9 not in box.failures

    asyncio.run(go())


def test_one_death_counts_once_for_items_that_ask_the_same() -> None:
    async def go() -> None:
        lane, box = new(), Box()
        same = [item(name, ids=b"\1\0\0\0" * 6) for name in range(2 * lane_module.MOST_DEATHS)]
        lane.add("a", TOP, same, box)
        assert len(asked(lane)) == len(same)
        lane.lose(DEATH)
        assert {error.reason for error in box.failures.values()} == {DEATH.reason}
        box.failures.clear()
        lane.add("a", TOP, same, box)
        await asyncio.sleep(0)
        assert box.failures == {}
        assert asked(lane) == [0]

    asyncio.run(go())


def test_what_waited_behind_a_deadly_item_is_not_blamed() -> None:
    lane, box = new(6), Box()
    for _ in range(lane_module.MOST_DEATHS + 1):
        lane.add("a", TOP, [item(0)], box)
        lane.add("b", TOP, [item(1)], box)
        assert (asked(lane), asked(lane)) in [([0], [1]), ([1], [0])]
        lane.lose(DEATH)
        assert set(box.failures) == {0, 1}
        box.failures.clear()
        lane._deaths.pop(next(iter(lane._deaths)))
    assert lane._deaths == {}


def test_a_good_answer_clears_an_item_of_blame() -> None:
    lane, box = new(), Box()
    for number in range(2 * lane_module.MOST_DEATHS):
        lane.add("a", TOP, [item(0)], box)
        assert asked(lane) == [0]
        if number % 2:
            lane.answer(answer(number + 1, 0))
            lane.done(done(number + 1))
            box.complete.clear()
        else:
            lane.lose(DEATH)
            box.failures.clear()
    assert lane._deaths == {}


def test_blame_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(lane_module, "MOST_REMEMBERED", 3)
    lane, box = new(6), Box()
    for name in range(10):
        lane.add("a", TOP, [item(name)], box)
        lane.next_call()
        lane.lose(DEATH)
    assert len(lane._deaths) == 3


def test_nothing_is_kept_of_sinks_that_are_done() -> None:
    lane = new()
    answered, failed, cancelled = Box(), Box(), Box()
    for box, name in ((answered, 0), (failed, 1), (cancelled, 2)):
        lane.add("a", TOP, [item(name)], box, alone=True)
    lane.next_call()
    lane.answer(answer(1, 0))
    lane.cancel(cancelled, None)
    lane.fail_waiting(DEATH)
    assert (answered.complete, list(failed.failures), cancelled.failures) == ([0], [1], {})
    assert lane._items == {}
    assert lane.waiting == 0
