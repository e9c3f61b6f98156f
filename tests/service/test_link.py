"""Frames over a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.service import link as link_module
from limbeck.service.link import Link

MIB = 1 << 20


def answer(size: int) -> internal.FromWorker:
    return internal.FromWorker(answer=internal.Answer(call=1, response=bytes(size)))


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Link, Link]]:
    ours, theirs = [await Link.of(end) for end in socket.socketpair()]
    try:
        yield ours, theirs
    finally:
        await ours.close()
        await theirs.close()


@asynccontextmanager
async def half() -> AsyncIterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    link = await Link.of(ours)
    with theirs:
        yield link, theirs
    await link.close()


async def send_all(link: Link, sizes: list[int], sent: list[int]) -> None:
    for size in sizes:
        await link.send(answer(size))
        sent.append(size)


def test_messages_of_every_size_arrive_in_order_and_then_the_end() -> None:
    async def go() -> None:
        sizes = [0, 1, 70_000, 3 * MIB, 5]
        async with pair() as (ours, theirs):
            sending = asyncio.ensure_future(send_all(ours, sizes, []))
            for size in sizes:
                assert await theirs.receive(internal.FromWorker) == answer(size)
            await sending
            await ours.close()
            assert await theirs.receive(internal.FromWorker) is None

    asyncio.run(go())


def test_a_reader_that_is_behind_stops_the_sender() -> None:
    async def go() -> None:
        sent: list[int] = []
        async with pair() as (ours, theirs):
            sending = asyncio.ensure_future(send_all(ours, [MIB] * 64, sent))
            await asyncio.sleep(0.2)
            assert len(sent) < 16
            for _ in range(64):
                assert await theirs.receive(internal.FromWorker) == answer(MIB)
            await sending

    asyncio.run(go())


def test_the_other_end_s_death_ends_a_frame_in_its_middle() -> None:
    async def go() -> None:
        async with half() as (link, end):
            end.sendall((100).to_bytes(4, "little") + b"half")
            end.close()
            assert await link.receive(internal.FromWorker) is None
            link.post(answer(10))  # is lost without a word

    asyncio.run(go())


def test_a_frame_beyond_the_bound_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with half() as (link, end):
            end.sendall((link_module.LARGEST + 1).to_bytes(4, "little"))
            with pytest.raises(ValueError, match="67,108,865 bytes"):
                await link.receive(internal.FromWorker)
            monkeypatch.setattr(link_module, "LARGEST", 100)
            with pytest.raises(ValueError, match="allowed are 100"):
                link.post(answer(101))

    asyncio.run(go())
