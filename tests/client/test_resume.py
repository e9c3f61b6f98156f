"""Calls over lost connections: the caller sees each item once, with its own numbers."""

from __future__ import annotations

import asyncio
import logging

import grpc
import numpy as np
import pytest

from limbeck.client import Prompt, Sampling, connect
from limbeck.errors import LimbeckError, Reason
from limbeck.v1 import teacher_service_pb2 as pb

from .scripted import TARGET, Scripted, answering, answers, client_of, failed, items, serving
from .test_score import check


@pytest.mark.parametrize(
    "fault",
    [grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE, Reason.PEER_SILENT, Reason.QUOTA_EXCEEDED, None],
    ids=str,
)
@pytest.mark.parametrize("source", [items, lambda count: iter(items(count))], ids=["list", "iterator"])
def test_after_a_lost_connection_only_what_is_unanswered_is_asked_again(fault, source):
    servicer = Scripted(answering(most=3, after=8, then=fault), answering(most=2, after=5, then=fault), answering())
    with serving(servicer) as address, connect(address) as client:
        check(client.score("t", source(8), TARGET), items(8))
    assert sorted(servicer.seen[1].ids) == list(range(3, 8))
    assert sorted(servicer.seen[2].ids) == list(range(5, 8))


def test_a_half_answer_is_void_after_a_lost_connection():
    """The first fragment of item 0 comes, then the connection goes: its rows must not be put before the new ones."""
    from limbeck.client import Want

    want = Want(layers=(-1, 0, 1, 2))

    async def half(server, seen, inbox, context):
        yield server.started(seen)
        got = await inbox.get()
        first, *rest = answers(seen, got.items[0])
        assert rest
        yield first
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    servicer = Scripted(half, answering())
    with serving(servicer) as address, connect(address) as client:
        found = dict(client.score("t", items(2, tokens=9), want))
    assert {name: signal.hidden[0].shape[0] for name, signal in found.items()} == {0: 8, 1: 8}


def test_items_alone_are_asked_again_together_and_answered_once():
    """So that they get the same bits: what was answered goes along, and is not given twice."""
    servicer = Scripted(answering(most=3, then=grpc.StatusCode.UNAVAILABLE), answering())
    with serving(servicer) as address, connect(address) as client:
        check(client.score("t", items(8), TARGET, alone=True), items(8))
    assert [seen.messages for seen in servicer.seen] == [[list(range(8))], [list(range(8))]]


def test_a_silent_server_is_left_and_asked_again():
    servicer = Scripted(answering(most=2, then="silence"), answering())
    with serving(servicer) as address, client_of(address, silence=0.3, retry_for=5) as client:
        check(client.score("t", items(5), TARGET), items(5))
    assert len(servicer.seen) == 2


def test_a_server_that_shows_signs_of_life_is_not_left():
    async def slow(server, seen, inbox, context):
        yield server.started(seen)
        got = await inbox.get()
        for _ in range(8):
            await asyncio.sleep(0.1)
            yield pb.ScoreResponse(alive=pb.Alive(position=1))
        for message in got.items:
            for response in answers(seen, message):
                yield response

    servicer = Scripted(slow)
    with serving(servicer) as address, client_of(address, silence=0.4, retry_for=5) as client:
        check(client.score("t", items(1), TARGET), items(1))
    assert len(servicer.seen) == 1


@pytest.mark.parametrize("reason", [Reason.TEACHER_UNAVAILABLE, Reason.QUOTA_EXCEEDED])
@pytest.mark.parametrize("alone", [False, True])
def test_an_item_that_failed_for_now_is_sent_again_over_the_same_call(reason, alone):
    left = {1, 2}

    async def once(server, seen, inbox, context):
        yield server.started(seen)
        while (got := await inbox.get()) != "end":
            for message in got.items:
                if message.item_id in left:
                    left.discard(message.item_id)
                    yield failed(message.item_id, reason)
                else:
                    for response in answers(seen, message):
                        yield response

    servicer = Scripted(once)
    with serving(servicer) as address, connect(address) as client:
        check(client.score("t", items(4), TARGET, alone=alone), items(4))
    assert len(servicer.seen) == 1
    assert sorted(servicer.seen[0].ids) == ([0, 0, 1, 1, 2, 2, 3, 3] if alone else [0, 1, 1, 2, 2, 3])
    assert not alone or servicer.seen[0].messages == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (pb.Limits(tokens_in_flight=3, answer_bytes=1 << 30), "item 0"),
        (pb.Limits(tokens_in_flight=1 << 20, answer_bytes=11), "item 0"),
    ],
)
def test_an_item_that_no_limit_will_ever_let_through_is_not_tried_again(limits, told):
    servicer = Scripted(answering(fail={0: Reason.QUOTA_EXCEEDED}), limits=limits)
    with (
        serving(servicer) as address,
        connect(address) as client,
        pytest.raises(LimbeckError, match=told) as caught,
    ):
        list(client.score("t", items(1), TARGET))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert servicer.seen[0].messages == [[0]]


def test_patience_ends_where_nothing_is_answered():
    servicer = Scripted(answering(most=1), answering(most=0, then=grpc.StatusCode.UNAVAILABLE))
    with serving(servicer) as address, client_of(address, retry_for=3) as client:
        stream = client.score("t", items(3), TARGET)
        next(stream)
        with pytest.raises(LimbeckError, match="without an answer") as caught:
            next(stream)
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE
    assert len(servicer.seen) > 2


def test_patience_begins_anew_with_each_answer():
    """Lost connections take longer than `retry_for` in all, but each brings an answer."""
    servicer = Scripted(*[answering(most=1, then=grpc.StatusCode.UNAVAILABLE)] * 24, answering())
    with serving(servicer) as address, client_of(address, retry_for=1.5) as client:
        check(client.score("t", items(25), TARGET), items(25))
    assert len(servicer.seen) == 25


def test_an_item_whose_teacher_never_comes_back_is_given_up():
    servicer = Scripted(answering(fail={1: Reason.TEACHER_UNAVAILABLE}))
    with serving(servicer) as address, client_of(address, retry_for=0.5) as client:
        stream = client.score("t", items(2), TARGET)
        assert next(stream)[0] == 0
        with pytest.raises(LimbeckError) as caught:
            next(stream)
    assert caught.value.reason is Reason.TEACHER_UNAVAILABLE
    assert "item 1" in str(caught.value)


def test_after_a_reconnect_only_the_same_teacher_may_go_on():
    servicer = Scripted(answering(most=1, then=grpc.StatusCode.UNAVAILABLE), answering())
    with serving(servicer) as address, connect(address) as client:
        check(client.score("t", items(2), TARGET), items(2))
    assert not servicer.seen[0].start.expectation.weights_digest
    expected = servicer.seen[1].start.expectation
    assert (expected.weights_digest, expected.tokenizer_digest, expected.vocab_size) == ("b" * 64, "a" * 64, 1000)


def test_credit_begins_anew_less_what_the_caller_still_holds():
    servicer = Scripted(answering(most=2, then=grpc.StatusCode.UNAVAILABLE), answering())
    from limbeck.client import Want

    with serving(servicer) as address, connect(address) as client:
        found = dict(client.score("t", items(6), Want(layers=(-1,)), credit=4 << 20))
    assert set(found) == set(range(6))
    assert servicer.seen[0].start.credit == 4 << 20
    assert servicer.seen[1].start.credit <= 4 << 20


def test_an_answer_to_what_was_not_asked_is_an_error():
    async def stray(server, seen, inbox, context):
        yield server.started(seen)
        yield pb.ScoreResponse(fragment=pb.Fragment(item_id=99, last=True))
        await asyncio.sleep(30)

    with (
        serving(Scripted(stray)) as address,
        connect(address) as client,
        pytest.raises(LimbeckError, match="item 99") as caught,
    ):
        list(client.score("t", items(1), TARGET))
    assert caught.value.reason is Reason.SIGNAL_INVALID


def test_an_answer_that_does_not_fit_is_an_error():
    async def short(server, seen, inbox, context):
        yield server.started(seen)
        got = await inbox.get()
        (response,) = answers(seen, got.items[0])
        response.fragment.signal.n -= 1
        yield response
        await asyncio.sleep(30)

    with serving(Scripted(short)) as address, connect(address) as client, pytest.raises(LimbeckError) as caught:
        list(client.score("t", items(1), TARGET))
    assert caught.value.reason is Reason.SIGNAL_INVALID


def test_a_lost_connection_is_told_once(caplog):
    servicer = Scripted(answering(most=1), *[answering(most=0, then=grpc.StatusCode.UNAVAILABLE)] * 3, answering())
    with caplog.at_level(logging.WARNING, "limbeck.client"), serving(servicer) as address, connect(address) as client:
        check(client.score("t", items(3), TARGET), items(3))
    assert len(caplog.records) == 1
    assert "trying again" in caplog.text


def test_prompts_are_asked_again_too():
    calls = 0

    class Losing(Scripted):
        async def Generate(self, requests, context):
            nonlocal calls
            calls += 1
            given = 0
            async for response in super().Generate(requests, context):
                if calls < 3 and given == 4:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                given += 1
                yield response

    prompts = [Prompt(i, np.array([i, 5], np.int32)) for i in range(10)]
    with serving(Losing()) as address, connect(address) as client:
        found = list(client.generate("t", prompts, Sampling(max_new_tokens=2)))
    assert sorted((c.item_id, *c.ids.tolist()) for c in found) == [(i, 5, i) for i in range(10)]
    assert calls == 3
