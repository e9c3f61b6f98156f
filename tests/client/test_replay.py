"""StreamSignals: each stored signal once and in order, from any cursor, over lost connections."""

from __future__ import annotations

import asyncio
import hashlib
import time

import grpc
import numpy as np
import pytest

from limbeck.client import Expectation, connect, connect_async
from limbeck.errors import LimbeckError, Reason
from limbeck.service.translate import refuse
from limbeck.signals import Signal, SignalHeader
from limbeck.signals.codec import encode
from limbeck.signals.messages import header_message
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .scripted import Scripted, client_of, serving

HEADER = SignalHeader(
    vocab_size=1000,
    k=0,
    temperatures=(),
    target=True,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    teacher="scripted",
    tail_exact=True,
)


def ids_of(sequence: int) -> np.ndarray:
    return np.arange(sequence, sequence + 4, dtype="<i4")


def stored(sequence: int, *, tokens: bool = False, rows: int = 3) -> pb.StoredSignal:
    packed = encode(Signal(0, rows, target=np.full(rows, -sequence, np.float32)), HEADER)
    message = pb.StoredSignal(
        sequence=sequence,
        signal=signal_pb2.PackedSignal(first_row=0, n=rows, **packed.fields),
        ids_sha256=hashlib.sha256(ids_of(sequence).tobytes()).digest(),
    )
    if tokens:
        message.tokens.CopyFrom(pb.Tokens(ids=ids_of(sequence).tobytes(), trained=bytes([0, 1, 1, 1])))
    return message


def signals(*sequences: int, **more) -> pb.StreamSignalsResponse:
    return pb.StreamSignalsResponse(signals=pb.StoredSignals(signals=[stored(s, **more) for s in sequences]))


def started(total: int, header: SignalHeader = HEADER) -> pb.StreamSignalsResponse:
    dataset = pb.Dataset(name="d", total=total, header=header_message(header))
    return pb.StreamSignalsResponse(started=pb.SignalsStarted(dataset=dataset))


def replaying(*scripts):
    """A server whose calls of StreamSignals take one script after the other, and the requests that it got.

    A script is a list of responses, of statuses to end the call with, and of numbers: seconds to wait.
    """
    servicer, requests, left = Scripted(), [], list(scripts)

    async def reply(request, context):
        requests.append(request)
        for step in left.pop(0) if len(left) > 1 else left[0]:
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, "as the test wants")
            elif isinstance(step, Reason):
                await refuse(context, LimbeckError(step))
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    servicer.replies["StreamSignals"] = reply
    return serving(servicer), requests


def seen(found) -> list[int]:
    """Sequences, each with its own numbers."""
    found = list(found)
    for one in found:
        np.testing.assert_array_equal(one.signal.target, np.full(3, -one.sequence, np.float32))
    return [one.sequence for one in found]


def test_signals_come_in_order_each_with_its_own_numbers():
    server, requests = replaying([started(5), signals(1, 2, 3), signals(4, 5)])
    with server as address, connect(address) as client:
        assert seen(client.signals("d", expect=Expectation(vocab_size=1000))) == [1, 2, 3, 4, 5]
    (request,) = requests
    assert (request.dataset, request.after_sequence, request.with_tokens) == ("d", 0, False)
    assert request.expectation.vocab_size == 1000


def test_a_cursor_is_sent():
    server, requests = replaying([started(5), signals(4, 5)])
    with server as address, connect(address) as client:
        assert seen(client.signals("d", after=3)) == [4, 5]
    assert requests[0].after_sequence == 3


@pytest.mark.parametrize("after", [-1, 1 << 64, 1.0, "3", None])
def test_a_cursor_that_is_none_is_refused(after):
    with connect("127.0.0.1:7411") as client, pytest.raises(LimbeckError, match=r"after: is .*, allowed") as caught:
        client.signals("d", after=after)
    assert caught.value.reason is Reason.REQUEST_INVALID


@pytest.mark.parametrize("fault", [grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE, 0.0], ids=str)
def test_after_a_lost_connection_it_goes_on_where_it_was(fault):
    """0.0: the stream ends in good order, before its last sequence."""
    server, requests = replaying(
        [started(6), signals(1, 2), fault], [started(6), signals(3), fault], [started(6), signals(4, 5, 6)]
    )
    with server as address, connect(address) as client:
        assert seen(client.signals("d")) == [1, 2, 3, 4, 5, 6]
    assert [request.after_sequence for request in requests] == [0, 2, 3]


def test_what_was_seen_is_dropped():
    server, _ = replaying([started(4), signals(1, 2), signals(2, 3), signals(1, 2, 3), signals(3, 4)])
    with server as address, connect(address) as client:
        assert seen(client.signals("d")) == [1, 2, 3, 4]


@pytest.mark.parametrize("responses", [[signals(1, 3)], [signals(2)]])
def test_a_gap_is_an_error(responses):
    server, _ = replaying([started(4), *responses])
    with server as address, connect(address) as client, pytest.raises(LimbeckError, match="was due") as caught:
        list(client.signals("d"))
    assert caught.value.reason is Reason.SIGNAL_INVALID


def test_other_signals_after_a_reconnect_are_refused():
    import dataclasses

    other = dataclasses.replace(HEADER, weights_digest="c" * 64)
    server, _ = replaying([started(4), signals(1), grpc.StatusCode.UNAVAILABLE], [started(4, other), signals(2, 3, 4)])
    with server as address, connect(address) as client:
        stream = client.signals("d")
        next(stream)
        with pytest.raises(LimbeckError) as caught:
            next(stream)
    assert caught.value.reason is Reason.TEACHER_MISMATCH


@pytest.mark.parametrize("reason", [Reason.DATASET_UNKNOWN, Reason.CURSOR_INVALID, Reason.STORE_DAMAGED])
def test_the_servers_errors_are_the_callers(reason):
    server, requests = replaying([reason])
    with server as address, connect(address) as client, pytest.raises(LimbeckError) as caught:
        list(client.signals("d"))
    assert caught.value.reason is reason
    assert len(requests) == 1


def test_a_capture_may_rest_longer_than_patience_lasts():
    """Signs of life, then the end of an idle replay: again and again, with nothing new."""
    alive = pb.StreamSignalsResponse(alive=pb.Alive(position=1))
    idle = [started(2), 0.15, alive, Reason.SERVER_UNAVAILABLE]
    server, requests = replaying([started(2), signals(1), *idle[1:]], *[idle] * 5, [started(2), signals(2)])
    with server as address, client_of(address, retry_for=0.3) as client:
        assert seen(client.signals("d")) == [1, 2]
    assert len(requests) == 7


def test_a_silent_server_is_left_and_asked_again():
    server, requests = replaying([started(2), signals(1), 60.0], [started(2), signals(2)])
    with server as address, client_of(address, silence=0.3) as client:
        assert seen(client.signals("d")) == [1, 2]
    assert len(requests) == 2


def test_tokens_come_as_a_sequence():
    server, requests = replaying([started(2), signals(1, 2, tokens=True)])
    with server as address, connect(address) as client:
        sequences = [one.tokens for one in client.signals("d", tokens=True)]
    assert requests[0].with_tokens
    assert [s.ids.tolist() for s in sequences] == [ids_of(1).tolist(), ids_of(2).tolist()]
    assert sequences[1].trained.tolist() == [False, True, True, True]
    assert (sequences[1].index, sequences[1].source, sequences[1].line) == (1, "d", 2)
    assert sequences[1].kept.tolist() == [0, 1, 2]


def test_tokens_say_which_pair_they_are_of():
    part = signals(1, 2, 3, tokens=True)
    for stored_signal, rejected in zip(part.signals.signals[1:], (False, True), strict=True):
        stored_signal.tokens.MergeFrom(pb.Tokens(pair=0, rejected=rejected))
    server, _ = replaying([started(3), part])
    with server as address, connect(address) as client:
        sequences = [one.tokens for one in client.signals("d", tokens=True)]
    assert [(s.pair, s.chosen) for s in sequences] == [(-1, True), (0, True), (0, False)]


def test_tokens_that_are_not_those_of_the_signal_are_refused():
    wrong = signals(1, tokens=True)
    wrong.signals.signals[0].tokens.ids = ids_of(2).tobytes()
    server, _ = replaying([started(2), wrong, signals(2)])
    with server as address, connect(address) as client:
        first, second = client.signals("d", tokens=True)
    for one, told in ((first, "not those that the signal was captured for"), (second, "were not asked for")):
        with pytest.raises(LimbeckError, match=told) as caught:
            _ = one.tokens
        assert caught.value.reason is Reason.SIGNAL_INVALID


def test_a_slow_caller_keeps_the_server_from_sending():
    sent = 0
    servicer = Scripted()

    async def reply(request, context):
        nonlocal sent
        yield started(200)
        for sequence in range(1, 201):
            yield signals(sequence, rows=1 << 18)  # 1 MiB
            sent += 1

    servicer.replies["StreamSignals"] = reply
    with serving(servicer) as address, connect(address) as client:
        stream = client.signals("d")
        next(stream)
        before = -1
        while before != sent:
            before = sent
            time.sleep(0.3)
        assert sent < 60  # 8 MiB ahead, and what gRPC keeps under way
        assert [one.sequence for one in stream] == list(range(2, 201))


def test_asyncio_and_leaving_early():
    server, _ = replaying([started(3), signals(1, 2), 60.0])

    async def main(address):
        async with connect_async(address) as client:
            async for one in client.signals("d"):
                assert one.sequence == 1
                break

    with server as address:
        asyncio.run(main(address))
