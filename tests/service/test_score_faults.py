"""Calls of Score over a raw stub: what is wrong with an item fails it, what is wrong with a call ends it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from limbeck.errors import CATALOGUE, LimbeckError, Problem, Reason
from limbeck.v1 import teacher_service_pb2 as pb

from .scoring import COST, grant, items, opened, start
from .served import INFO, error_from, ids, item, serving, soon


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
