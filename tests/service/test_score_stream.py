"""Calls of Score over a raw stub: what is begun when, what is sent when."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc

from limbeck.service import quotas
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub

from .scoring import COST, MIB, ROW, alive, grant, items, opened
from .served import item, serving, soon


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
