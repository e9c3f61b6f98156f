"""Calls of Generate over a raw stub."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from limbeck.client import Prompt, Sampling, connect_async
from limbeck.client import exchange as exchange_module
from limbeck.errors import CATALOGUE, LimbeckError, Reason
from limbeck.service import quotas as quotas_module
from limbeck.service.config import Limits
from limbeck.v1 import teacher_service_pb2 as pb

from .served import error_from, ids, serving, soon


def start(**more) -> pb.GenerateRequest:
    sampling = more.pop("sampling", pb.Sampling(max_new_tokens=3))
    return pb.GenerateRequest(start=pb.GenerateStart(teacher="t", sampling=sampling, **more))


def prompts(*item_ids: int, tokens: int = 4) -> pb.GenerateRequest:
    them = [pb.Prompt(item_id=item_id, ids=ids(*[7] * tokens)) for item_id in item_ids]
    return pb.GenerateRequest(prompts=pb.Prompts(prompts=them))


async def opened(stub, **more):
    call = stub.Generate()
    await call.write(start(**more))
    while (started := await call.read()).WhichOneof("kind") == "alive":
        pass
    assert started.WhichOneof("kind") == "started"
    return call


def test_prompts_are_continued_without_credit_and_half_close_ends_the_call(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(prompts(1, 2))
            await soon(lambda: served.host.asked == [1, 2])
            served.host.complete(2)
            await call.done_writing()
            served.host.fail(1, LimbeckError(Reason.TEACHER_UNAVAILABLE))
            got = [await call.read(), await call.read()]
            assert {message.WhichOneof("kind") for message in got} == {"completion", "failed"}
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


def test_a_real_worker_continues(echo):
    async def check():
        async with serving(echo, host=None) as served:
            call = await opened(served.stub)
            await call.write(prompts(1, 2, tokens=2))
            await call.done_writing()
            got = [(await call.read()).completion for _ in range(2)]
            assert {completion.item_id for completion in got} == {1, 2}
            assert all(completion.finish_reason for completion in got)
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


def test_a_dropped_prompt_is_dropped_at_the_host(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(prompts(1, 2))
            await call.write(pb.GenerateRequest(cancel=pb.Cancel(item_id=1)))
            await soon(lambda: served.host.cancelled == [[1]])
            served.host.complete(1)
            served.host.complete(2)
            assert (await call.read()).completion.item_id == 2

    asyncio.run(check())


def test_a_prompt_counts_its_new_tokens_too(echo):
    async def check():
        async with serving(echo, limits=Limits(tokens_in_flight=10)) as served:
            call = await opened(served.stub, sampling=pb.Sampling(max_new_tokens=6))
            await call.write(prompts(1, tokens=4))
            await call.write(prompts(2, tokens=1))
            failed = (await call.read()).failed
            assert (failed.item_id, failed.error.reason) == (2, "QUOTA_EXCEEDED")
            served.host.complete(1)
            assert (await call.read()).completion.item_id == 1
            await call.write(prompts(2, tokens=1))
            await soon(lambda: served.host.asked == [1, 2])

    asyncio.run(check())


def test_a_bad_prompt_fails_and_the_call_goes_on(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(prompts(1, tokens=0))
            await call.write(prompts(2))
            failed = (await call.read()).failed
            assert (failed.item_id, failed.error.reason) == (1, "REQUEST_INVALID")
            await soon(lambda: served.host.asked == [2])

    asyncio.run(check())


@pytest.mark.parametrize(
    "sampling",
    [
        pb.Sampling(max_new_tokens=0),
        pb.Sampling(max_new_tokens=1, temperature=-1),
        pb.Sampling(max_new_tokens=1, temperature=float("nan")),
        pb.Sampling(max_new_tokens=1, top_p=0),
        pb.Sampling(max_new_tokens=1, logprobs=301),
    ],
)
def test_sampling_that_cannot_be_ends_the_call(echo, sampling):
    async def check():
        async with serving(echo) as served:
            call = served.stub.Generate()
            await call.write(start(sampling=sampling))
            code, error = await error_from(call)
            assert (code.name, error.reason) == (CATALOGUE[error.reason].status, Reason.REQUEST_INVALID)

    asyncio.run(check())


def test_what_is_said_has_the_header_that_the_call_begins_with(echo):
    async def check():
        async with serving(echo) as served:
            for logprobs in (0, 5):
                call = served.stub.Generate()
                await call.write(start(sampling=pb.Sampling(max_new_tokens=3, logprobs=logprobs)))
                started = (await call.read()).started
                assert started.HasField("header") == bool(logprobs)
            assert (started.header.k, list(started.header.temperatures), started.header.target) == (5, [1.0], True)
            assert started.header.vocab_size == 300

    asyncio.run(check())


ROW = 5 * 2 + 5 * 2 + 4 + 4  # bytes of what is said of one token with 5 logprobs of 300 ids


def test_a_prompt_whose_answer_may_be_too_large_is_refused(echo):
    async def check():
        most = 4 * 100 + 101 * ROW
        for limit, kind in ((most, "completion"), (most - 1, "failed")):
            async with serving(echo, limits=Limits(answer_bytes=limit)) as served:
                call = await opened(served.stub, sampling=pb.Sampling(max_new_tokens=100, logprobs=5))
                await call.write(prompts(1))
                if kind == "completion":
                    await soon(lambda host=served.host: host.asked == [1])
                    served.host.complete(1)
                answer = await call.read()
                assert answer.WhichOneof("kind") == kind
        assert answer.failed.error.reason == "QUOTA_EXCEEDED"
        assert "logprobs" in answer.failed.error.problems[0].hint

    asyncio.run(check())


def test_no_more_is_begun_than_there_is_room_for_and_a_short_text_makes_room(echo, monkeypatch):
    most = 4 * 1000 + 1001 * ROW
    monkeypatch.setattr(quotas_module, "OUTPUT_BYTES", 2 * most)
    monkeypatch.setattr(quotas_module, "STREAM_BYTES", 0)

    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub, sampling=pb.Sampling(max_new_tokens=1000, logprobs=5))
            await call.write(prompts(1, 2, 3, 4, 5))
            await soon(lambda: served.host.asked == [1, 2])
            served.host.complete(2)
            assert (await call.read()).completion.item_id == 2
            await soon(lambda: served.host.asked == [1, 2, 3])
            await call.write(pb.GenerateRequest(cancel=pb.Cancel(item_id=4)))
            await call.write(pb.GenerateRequest(cancel=pb.Cancel(item_id=1)))
            await soon(lambda: served.host.asked == [1, 2, 3, 5])
            assert served.host.cancelled == [[1]]
            await call.done_writing()
            for item_id in (3, 5):
                served.host.complete(item_id)
                assert (await call.read()).completion.item_id == item_id
            assert await call.read() is grpc.aio.EOF

    asyncio.run(check())


def test_a_caller_that_reads_slowly_holds_its_client_back(echo, monkeypatch):
    monkeypatch.setattr(exchange_module, "MOST_HELD", 2000)

    async def check():
        limits = Limits(tokens_in_flight=200)
        async with serving(echo, host=None, limits=limits) as served, connect_async(served.address) as client:
            asked = (Prompt(i, np.full(6, 7, np.int32)) for i in range(300))
            stream = client.generating("t", asked, Sampling(max_new_tokens=4, logprobs=8))
            found = await stream.next()
            held = -1
            while held < (held := stream._held):  # until nothing more comes
                await asyncio.sleep(0.5)
            assert 2000 < held < 10_000
            while (more := await stream.next()) is not None:
                found += more
            assert sorted(text.item_id for text in found) == list(range(300))
            assert all(len(text.said.ids) for text in found)

    asyncio.run(check())


def test_a_drain_finishes_the_prompts_that_are_there(echo):
    async def check():
        async with serving(echo) as served:
            call = await opened(served.stub)
            await call.write(prompts(1))
            await soon(lambda: served.host.asked == [1])
            stopping = asyncio.ensure_future(served.server.stop(10))
            await soon(lambda: served.server.service.draining)
            served.host.complete(1)
            assert (await call.read()).completion.item_id == 1
            _, error = await error_from(call)
            assert error.reason is Reason.SERVER_UNAVAILABLE
            assert await stopping

    asyncio.run(check())
