"""Calls of Score over a raw stub: items that are dropped, and what one client may have under way."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from limbeck.errors import Reason
from limbeck.service import streams
from limbeck.service.config import Limits
from limbeck.v1 import teacher_service_pb2 as pb

from .scoring import COST, MIB, ROW, grant, items, opened
from .served import error_from, ids, item, serving, soon


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
