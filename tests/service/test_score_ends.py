"""Calls of Score over a raw stub: signs of life, and a server that drains."""

from __future__ import annotations

import asyncio

import grpc

from limbeck.errors import Reason
from limbeck.service.config import Limits, Timing
from limbeck.v1 import teacher_service_pb2 as pb

from .scoring import COST, MIB, alive, grant, items, opened, start
from .served import error_from, item, serving, soon

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
