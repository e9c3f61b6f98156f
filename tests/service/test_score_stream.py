"""Calls of Score over a raw stub: what is begun when, what is sent when, how a call ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest

from limbeck.errors import CATALOGUE, LimbeckError, Problem, Reason
from limbeck.interfaces import Want
from limbeck.service import quotas, streams
from limbeck.service.config import Limits, Timing
from limbeck.signals.messages import header_for
from limbeck.v1 import teacher_service_pb2 as pb
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub

from .served import INFO, error_from, ids, item, serving, soon

MIB = 1 << 20
ROW = sum(header_for(INFO, Want(top_k=4)).row_bytes.values())
COST = 2 * ROW  # of the answer to `item`


def start(*, credit: int = 64 * MIB, **more) -> pb.ScoreRequest:
    want = more.pop("want", pb.Want(top_k=4))
    return pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=want, credit=credit, **more))


def items(*them: pb.ScoreItem, alone: bool = False) -> pb.ScoreRequest:
    return pb.ScoreRequest(items=pb.ScoreItems(items=them, alone=alone))


def grant(number: int) -> pb.ScoreRequest:
    return pb.ScoreRequest(grant=pb.Grant(bytes=number))


def alive() -> pb.ScoreRequest:
    return pb.ScoreRequest(alive=pb.Alive())


async def opened(stub, **more):
    call = stub.Score()
    await call.write(start(**more))
    while (started := await call.read()).WhichOneof("kind") == "alive":
        pass
    assert started.WhichOneof("kind") == "started"
    return call


def test_items_are_answered_and_half_close_ends_the_call(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(items(item(1), item(2)))
            await call.done_writing()
            await soon(lambda: served.host.asked == [1, 2])
            served.host.answer(2, 10)
            served.host.answer(1, 10, last=False)
            served.host.answer(1, 10)
            got = [await call.read() for _ in range(3)]
            assert [(g.fragment.item_id, g.fragment.last) for g in got] == [(2, True), (1, False), (1, True)]
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK

    asyncio.run(check())


def test_a_real_worker_answers(echo):
    async def check():
        async with serving(echo, host=None) as served:
            call = await opened(served.stub)
            await call.write(items(item(1), item(2)))
            await call.done_writing()
            got = [await call.read() for _ in range(2)]
            assert {g.fragment.item_id for g in got} == {1, 2}
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


# ------------------------------------------------------------------------------------------------------------- credits


def test_nothing_is_begun_without_credit(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=0)
            await call.write(items(item(1)))
            await call.write(alive())
            await asyncio.sleep(0.1)
            assert served.host.asked == []
            await call.write(grant(COST))
            await soon(lambda: served.host.asked == [1])

    asyncio.run(check())


def test_as_many_items_are_begun_as_the_credit_covers(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=2 * COST + 1)
            await call.write(items(item(1), item(2), item(3), item(4)))
            await soon(lambda: served.host.asked == [1, 2])
            served.host.answer(1, COST)
            assert (await call.read()).fragment.item_id == 1
            await asyncio.sleep(0.05)
            assert served.host.asked == [1, 2], "an answer that was sent gives no credit back"
            await call.write(grant(COST))
            await soon(lambda: served.host.asked == [1, 2, 3])

    asyncio.run(check())


def test_a_large_answer_is_begun_with_a_mebibyte_and_sent_as_it_is_granted(echo):
    rows = 1 + 2 * MIB // ROW
    large = item(1, rows, n=rows)

    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=MIB - 1)
            await call.write(items(large))
            await call.write(grant(1))
            await soon(lambda: served.host.asked == [1])
            for number in range(3):
                served.host.answer(1, MIB // 2 + 1, last=number == 2)
            # 1 MiB of credit: two fragments fit, the second overdraws, the third waits
            assert [(await call.read()).fragment.cost for _ in range(2)] == [MIB // 2 + 1] * 2
            reading = asyncio.ensure_future(call.read())
            await asyncio.sleep(0.1)
            assert not reading.done()
            await call.write(grant(2))
            await asyncio.sleep(0.1)
            assert not reading.done(), "the overdraft is paid first"
            await call.write(grant(1))
            assert (await reading).fragment.last

    asyncio.run(check())


def test_after_half_close_no_credit_is_needed(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=0)
            await call.write(items(item(1), item(2)))
            await call.done_writing()
            await soon(lambda: served.host.asked == [1, 2])
            served.host.answer(1, COST)
            served.host.answer(2, COST)
            assert [(await call.read()).fragment.item_id for _ in range(2)] == [1, 2]
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


def test_items_alone_are_begun_together_and_in_order(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=2 * COST)
            await call.write(items(item(7), item(3), item(5), alone=True))
            await call.write(items(item(9)))
            await asyncio.sleep(0.1)
            assert served.host.calls == [], "the credit covers two of the three"
            await call.write(grant(2 * COST))
            await soon(lambda: len(served.host.calls) == 2)
            assert [(ids, alone) for _, ids, alone in served.host.calls] == [([7, 3, 5], True), ([9], False)]

    asyncio.run(check())


def test_a_client_that_reads_nothing_is_asked_for_no_more_than_its_share(echo, monkeypatch):
    monkeypatch.setattr(quotas, "STREAM_BYTES", 3 * COST)
    monkeypatch.setattr(quotas, "OUTPUT_BYTES", 0)

    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            other = await opened(served.stub)
            await call.write(items(*(item(number) for number in range(10))))
            await soon(lambda: served.host.asked == [0, 1, 2])
            await other.write(items(item(100)))
            await soon(lambda: served.host.asked == [0, 1, 2, 100])
            served.host.answer(1, COST)
            assert (await call.read()).fragment.item_id == 1
            await soon(lambda: served.host.asked == [0, 1, 2, 100, 3])

    asyncio.run(check())


def test_clients_that_read_nothing_hold_no_more_than_the_servers_share_together(echo, monkeypatch):
    monkeypatch.setattr(quotas, "STREAM_BYTES", COST)
    monkeypatch.setattr(quotas, "SERVER_BYTES", 8 * COST)

    async def check():
        async with serving(echo) as served, AsyncExitStack() as stack:
            calls = []
            for _ in range(4):  # without tokens each connection is a client
                options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.aio.insecure_channel(served.address, options=options)
                await stack.enter_async_context(channel)
                calls.append(await opened(TeacherServiceStub(channel)))
            for number, call in enumerate(calls):
                await call.write(items(*(item(10 * number + place) for place in range(5))))
            await soon(lambda: len(served.host.asked) == 8)
            await asyncio.sleep(0.1)
            assert sorted(served.host.asked) == [0, 1, 10, 11, 20, 21, 30, 31]
            served.host.answer(10, COST)
            assert (await calls[1].read()).fragment.item_id == 10
            await soon(lambda: served.host.asked[8:] == [12])
            for call in calls[2:]:
                call.cancel()
            await soon(lambda: sorted(served.host.asked[8:]) == [2, 3, 12, 13, 14])

    asyncio.run(check())


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (item(1, 4, n=5), "rows 0 … 4 of 4 tokens"),
        (pb.ScoreItem(item_id=1, ids=b"abc", n=1), "no whole number"),
        (pb.ScoreItem(item_id=1, ids=ids(5, 300), n=1), "not in the vocabulary"),
        (pb.ScoreItem(item_id=1, ids=ids(5, -1), n=1), "not in the vocabulary"),
        (pb.ScoreItem(item_id=1, ids=b"", n=1), "at least 1 token"),
        (pb.ScoreItem(item_id=1, ids=ids(5), n=2**32 - 1, first_row=2**32 - 1), "are asked"),
    ],
)
def test_a_bad_item_fails_and_the_call_goes_on(echo, bad, said):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(items(bad, item(2)))
            failed = (await call.read()).failed
            assert (failed.item_id, failed.error.reason) == (1, "REQUEST_INVALID")
            assert said in failed.error.problems[0].message
            await soon(lambda: served.host.asked == [2])
            served.host.answer(2, COST)
            assert (await call.read()).fragment.item_id == 2

    asyncio.run(check())


@pytest.mark.parametrize(
    ("want", "reason"),
    [
        (pb.Want(), Reason.CAPABILITY_MISSING),
        (pb.Want(top_k=301), Reason.CAPABILITY_MISSING),
        (pb.Want(full=True), Reason.CAPABILITY_MISSING),
        (pb.Want(layers=[3]), Reason.CAPABILITY_MISSING),
        (pb.Want(layers=[1, 1]), Reason.REQUEST_INVALID),
        (pb.Want(top_k=4, temperatures=[2, 1]), Reason.REQUEST_INVALID),
        (pb.Want(top_k=4, temperatures=[1, 1]), Reason.REQUEST_INVALID),
        (pb.Want(top_k=4, temperatures=[0]), Reason.CAPABILITY_MISSING),
        (pb.Want(top_k=4, temperatures=[float("nan")]), Reason.CAPABILITY_MISSING),
        (pb.Want(samples=2**32 - 1), Reason.REQUEST_INVALID),
        (pb.Want(top_k=4, temperatures=range(1, 400_000)), Reason.REQUEST_INVALID),
        (pb.Want(layers=range(1_000_000)), Reason.REQUEST_INVALID),
    ],
)
def test_a_want_that_cannot_be_ends_the_call_before_the_first_item(echo, want, reason):
    async def check():
        async with serving(echo) as served:
            call = served.stub.Score()
            await call.write(start(want=want))
            code, error = await error_from(call)
            assert (code.name, error.reason) == (CATALOGUE[reason].status, reason)
            assert error.problems

    asyncio.run(check())


def test_full_rows_are_given_where_the_server_allows_them(echo):
    async def check():
        async with serving(echo, allow_full=True) as served:
            call = await opened(served.stub, want=pb.Want(full=True))
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1])

    asyncio.run(check())


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"tokenizer_digest": "c" * 64}, Reason.TOKENIZER_MISMATCH),
        ({"weights_digest": "c" * 64}, Reason.TEACHER_MISMATCH),
        ({"vocab_size": 301}, Reason.TEACHER_MISMATCH),
        ({"tokenizer_digest": "c" * 64, "vocab_size": 301}, Reason.TOKENIZER_MISMATCH),
    ],
)
def test_a_teacher_that_is_not_expected_is_refused_before_the_first_item(echo, expected, reason):
    async def check():
        async with serving(echo) as served:
            call = served.stub.Score()
            await call.write(start(expectation=pb.Expectation(**expected)))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
            assert {problem.field for problem in error.problems} == set(expected)

    asyncio.run(check())


def test_what_is_expected_and_there_is_accepted(echo):
    async def check():
        async with serving(echo) as served:
            expected = pb.Expectation(
                tokenizer_digest=INFO.tokenizer_digest, weights_digest=INFO.weights_digest, vocab_size=INFO.vocab_size
            )
            await opened(served.stub, expectation=expected)

    asyncio.run(check())


@pytest.mark.parametrize(
    "messages",
    [
        [items(item(1))],
        [start(), start()],
        [start(), pb.ScoreRequest()],
        [start(), items(item(1)), items(item(1))],
        [start(), b"\xff\xff\xff"],
        [b"\x0a\xff"],
    ],
    ids=["no start", "two starts", "nothing said", "an id twice", "bytes", "bytes at first"],
)
def test_a_client_that_breaks_the_rules_is_told(echo, messages):
    async def check():
        async with serving(echo) as served:
            call = served.channel.stream_stream("/limbeck.v1.TeacherService/Score")()
            for message in messages:
                await call.write(message if isinstance(message, bytes) else message.SerializeToString())
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REQUEST_INVALID)

    asyncio.run(check())


def test_a_call_that_ends_before_it_begins_is_told(echo):
    async def check():
        async with serving(echo) as served:
            call = served.stub.Score()
            await call.done_writing()
            _, error = await error_from(call)
            assert error.reason is Reason.REQUEST_INVALID

    asyncio.run(check())


def test_an_item_that_the_host_gives_up_fails_and_what_came_of_it_is_void(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=COST)
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1])
            served.host.answer(1, COST, last=False)
            assert not (await call.read()).fragment.last
            served.host.answer(1, COST, last=False)  # waits for credit
            served.host.fail(1, LimbeckError(Reason.TEACHER_UNAVAILABLE))
            failed = (await call.read()).failed
            assert (failed.item_id, failed.error.reason) == (1, "TEACHER_UNAVAILABLE")
            await call.write(grant(10 * COST))
            await call.write(items(item(1)))  # sent again, under the same name
            await soon(lambda: served.host.asked == [1, 1])
            served.host.answer(1, COST)
            assert (await call.read()).fragment.last

    asyncio.run(check())


def test_a_start_that_fails_ends_the_call_with_its_error_and_no_path(echo):
    async def check():
        async with serving(echo) as served:
            problem = Problem("/srv/models/gemma/config.json is not there", file="/srv/models/gemma")
            served.host.error = LimbeckError(Reason.MODEL_INVALID, problems=[problem])
            call = served.stub.Score()
            await call.write(start())
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.MODEL_INVALID)
            assert error.problems[0].message == "…/config.json is not there"

    asyncio.run(check())


def test_an_unknown_teacher_is_refused(echo):
    async def check():
        async with serving(echo) as served:
            call = served.stub.Score()
            await call.write(pb.ScoreRequest(start=pb.ScoreStart(teacher="u", want=pb.Want(top_k=1))))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.TEACHER_UNKNOWN)

    asyncio.run(check())


def test_a_worker_that_comes_back_with_other_weights_ends_the_call(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            served.host.info = replace(INFO, weights_digest="e" * 64)
            await call.write(items(item(1)))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.TEACHER_MISMATCH)

    asyncio.run(check())


# ------------------------------------------------------------------------------------------------ dropped items, quotas


def test_a_dropped_item_is_dropped_at_the_host_and_nothing_more_comes_of_it(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=2 * COST)
            await call.write(items(item(1), item(2), item(3)))
            await soon(lambda: served.host.asked == [1, 2])
            await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=1)))
            await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=77)))  # never heard of
            await soon(lambda: served.host.cancelled == [[1]])
            await soon(lambda: served.host.asked == [1, 2, 3])  # its credit is free again
            served.host.answer(1, COST)
            served.host.answer(2, COST)
            assert (await call.read()).fragment.item_id == 2
            await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=3)))
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


def test_an_item_dropped_before_it_began_never_reaches_the_host(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=0)
            await call.write(items(item(1), item(2)))
            await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=1)))
            await call.write(grant(10 * COST))
            await soon(lambda: served.host.asked == [2])
            assert served.host.cancelled == []

    asyncio.run(check())


def test_an_id_may_be_used_again_once_its_item_is_dropped(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=0)
            for _ in range(3):
                await call.write(items(item(1)))
                await call.write(items(item(1 << 60), item(2), alone=True))
                for dropped in (1, 1 << 60, 2):
                    await call.write(pb.ScoreRequest(cancel=pb.Cancel(item_id=dropped)))
            await call.write(items(item(1), item(2)))
            await call.write(grant(10 * COST))
            await soon(lambda: served.host.asked == [1, 2])
            (stream,) = served.server.service._open
            assert not stream._waiting
            served.host.answer(1, COST)
            await call.read()
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1, 2, 1])

    asyncio.run(check())


def test_an_id_may_be_used_again_while_the_last_of_its_answer_is_on_its_way(echo):
    async def check():
        async with serving(echo) as served:
            served.host.at_once = True
            call = await opened(served.stub)
            for _ in range(200):
                await call.write(items(item(1)))
                assert (await call.read()).fragment.last

    asyncio.run(check())


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_client_that_goes_takes_its_items_along(echo, how):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(items(item(1), item(2)))
            await soon(lambda: served.host.asked == [1, 2])
            if how == "cancel":
                call.cancel()
            else:
                await served.channel.close()
            await soon(lambda: served.host.cancelled == [None])
            await soon(lambda: not served.server.service.busy)

    asyncio.run(check())


def test_tokens_in_flight_are_limited_per_client_over_its_calls(echo):
    async def check():
        async with serving(echo, limits=Limits(tokens_in_flight=10)) as served:
            call, other = await opened(served.stub), await opened(served.stub)
            await call.write(items(item(1, 6)))
            await soon(lambda: served.host.asked == [1])
            await other.write(items(item(2, 6), item(3, 4)))
            failed = (await other.read()).failed
            assert (failed.item_id, failed.error.reason) == (2, "QUOTA_EXCEEDED")
            assert failed.error.problems[0].field == "tokens_in_flight"
            await soon(lambda: served.host.asked == [1, 3])
            served.host.answer(1, COST)
            assert (await call.read()).fragment.last
            await other.write(items(item(2, 6)))
            await soon(lambda: served.host.asked == [1, 3, 2])
            call.cancel()
            other.cancel()

    asyncio.run(check())


def test_an_answer_may_only_be_so_large(echo):
    async def check():
        async with serving(echo, limits=Limits(answer_bytes=2 * ROW)) as served:
            call = await opened(served.stub)
            await call.write(items(item(1, 4, n=3), item(2, 4, n=2)))
            failed = (await call.read()).failed
            assert (failed.item_id, failed.error.reason) == (1, "QUOTA_EXCEEDED")
            await soon(lambda: served.host.asked == [2])

    asyncio.run(check())


def test_streams_are_limited_per_client(echo):
    async def check():
        async with serving(echo, limits=Limits(streams=2)) as served:
            first = await opened(served.stub)
            await opened(served.stub)
            third = served.stub.Generate()
            code, error = await error_from(third)
            assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUOTA_EXCEEDED)
            first.cancel()
            await soon(lambda: served.server.service.busy == 1)
            await opened(served.stub)

    asyncio.run(check())


def test_a_row_that_fits_no_message_is_refused(echo):
    asked = pb.ScoreItem(item_id=1, ids=ids(5, 6), n=1, token_ids=b"\5\0\0\0" * (MIB - 100))

    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, want=pb.Want(token_ids=True))
            await call.write(items(asked))
            failed = (await call.read()).failed
            assert failed.error.reason == "REQUEST_INVALID"
            assert "fit a message" in failed.error.problems[0].message

    asyncio.run(check())


def test_failures_that_nobody_reads_are_bounded(echo, monkeypatch):
    monkeypatch.setattr(streams, "UNREAD", 1000)

    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            bad = items(*(pb.ScoreItem(item_id=number, ids=b"abc", n=1) for number in range(2_000)))
            for _ in range(5):
                await call.write(bad)
            (stream,) = served.server.service._open
            largest = 0
            for _ in range(50):
                await asyncio.sleep(0.01)
                largest = max(largest, stream._told)
            assert largest < 5 * 2_000 * 100, "one message of failures at most"
            await call.done_writing()
            got = 0
            while await call.read() is not grpc.aio.EOF:
                got += 1
            assert got == 10_000

    asyncio.run(check())


# ------------------------------------------------------------------------------------------------------- signs of life


def test_the_server_says_that_it_is_alive_and_how_much_is_under_way(echo):
    async def check():
        async with serving(echo, timing=Timing(alive=0.05)) as served:
            call = await opened(served.stub, credit=0)
            assert (await call.read()).alive.position == 0
            await call.write(items(item(1), item(2)))
            async with asyncio.timeout(5):
                while (await call.read()).alive.position != 2:
                    pass

    asyncio.run(check())


def test_signs_of_life_come_while_the_teacher_starts(echo):
    async def check():
        async with serving(echo, timing=Timing(alive=0.05)) as served:
            served.host.ready.clear()
            call = served.stub.Score()
            await call.write(start())
            for _ in range(3):
                assert (await call.read()).WhichOneof("kind") == "alive"
            served.host.ready.set()
            async with asyncio.timeout(5):
                while (kind := (await call.read()).WhichOneof("kind")) == "alive":
                    pass
            assert kind == "started"

    asyncio.run(check())


def test_a_silent_client_is_given_up_and_a_living_one_is_not(echo):
    async def check():
        async with serving(echo, timing=Timing(silent=0.4)) as served:
            silent, living = await opened(served.stub), await opened(served.stub)
            closed = await opened(served.stub)
            await closed.write(items(item(1)))
            await closed.done_writing()
            ended = asyncio.ensure_future(error_from(silent))
            while not ended.done():
                await living.write(alive())
                await asyncio.sleep(0.05)
            code, error = await ended
            assert (code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.PEER_SILENT)
            assert not living.done()
            assert not closed.done(), "after half-close nothing can come"
            living.cancel()

    asyncio.run(check())


# --------------------------------------------------------------------------------------------------------------- drain


def test_a_drain_answers_what_is_begun_and_sends_the_client_away(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=COST)
            await call.write(items(item(1), item(2)))
            await soon(lambda: served.host.asked == [1])
            stopping = asyncio.ensure_future(served.server.stop(10))
            await soon(lambda: served.server.service.draining)
            await call.write(items(item(3)))
            await call.write(grant(10 * COST))
            late = served.stub.Score()
            code, error = await error_from(late)
            assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)
            served.host.answer(1, COST)
            assert (await call.read()).fragment.item_id == 1
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)
            assert await stopping
            assert served.host.asked == [1]
            assert served.host.closed

    asyncio.run(check())


def test_a_drain_finishes_a_call_that_is_half_closed(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, credit=COST)
            await call.write(items(item(1), item(2)))
            await call.done_writing()
            await soon(lambda: served.host.asked == [1, 2])
            stopping = asyncio.ensure_future(served.server.stop(10))
            await soon(lambda: served.server.service.draining)
            served.host.answer(1, COST)
            served.host.answer(2, COST)
            assert [(await call.read()).fragment.item_id for _ in range(2)] == [1, 2]
            assert await call.read() is grpc.aio.EOF
            assert await stopping

    asyncio.run(check())


def test_a_drain_never_ends_a_call_well_that_left_items_unanswered(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1])
            stopping = asyncio.ensure_future(served.server.stop(10))
            await soon(lambda: served.server.service.draining)
            await call.write(items(item(2)))
            await call.done_writing()
            (stream,) = served.server.service._open
            await soon(lambda: stream._half_closed)
            served.host.answer(1, COST)
            assert (await call.read()).fragment.item_id == 1
            _, error = await error_from(call)
            assert error.reason is Reason.SERVER_UNAVAILABLE
            assert await stopping

    asyncio.run(check())


def test_a_drain_ends_when_its_time_is_over(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1])
            assert not await served.server.stop(0.1)
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)

    asyncio.run(check())


def test_a_call_counts_until_its_client_has_read_how_it_ended(echo):
    large = pb.ScoreResponse(fragment=pb.Fragment(item_id=1, full=b"x" * MIB)).SerializeToString()

    async def check():
        async with serving(echo, timing=Timing(silent=0.3), limits=Limits(streams=1)) as served:
            call = await opened(served.stub)
            await call.write(items(item(1)))
            await soon(lambda: served.host.asked == [1])
            for _ in range(30):  # more than gRPC takes on its way
                served.host.sinks[1].answer(1, large, 0, False)
            await soon(lambda: served.host.cancelled == [None])
            _, error = await error_from(served.stub.Score())
            assert error.reason is Reason.QUOTA_EXCEEDED, "the first is given up, and not over"
            _, error = await error_from(call)
            assert error.reason is Reason.PEER_SILENT
            await soon(lambda: not served.server.service.busy)
            await opened(served.stub)

    asyncio.run(check())
