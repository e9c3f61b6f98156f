"""Calls of Score over a raw stub: what is begun when, what is sent when, how a call ends."""

from __future__ import annotations

import asyncio

import grpc

from limbeck.v1 import teacher_service_pb2 as pb

from .served import item, serving

MIB = 1 << 20


def start(*, credit: int = 64 * MIB, **more) -> pb.ScoreRequest:
    want = more.pop("want", pb.Want(top_k=4))
    return pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=want, credit=credit, **more))


def items(*them: pb.ScoreItem, alone: bool = False) -> pb.ScoreRequest:
    return pb.ScoreRequest(items=pb.ScoreItems(items=them, alone=alone))


async def soon(condition) -> None:
    """Wait until something of the server is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def opened(stub, **more):
    call = stub.Score()
    await call.write(start(**more))
    started = await call.read()
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
