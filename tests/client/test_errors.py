"""What a call ends with is an error of the catalogue, whoever said it."""

from __future__ import annotations

import http.server
import threading
import time
from contextlib import contextmanager

import grpc
import pytest

from limbeck.client import Expectation, connect
from limbeck.client.errors import AGAIN
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.translate import refuse

from .scripted import TARGET, Scripted, answering, client_of, items, serving


@contextmanager
def saying(what):
    """A server whose GetTeacher ends so."""

    async def reply(request, context):
        if isinstance(what, grpc.StatusCode):
            await context.abort(what, "nothing more")
        await refuse(context, what)

    servicer = Scripted()
    servicer.replies["GetTeacher"] = reply
    with serving(servicer) as address:
        yield servicer, address


def error_of(address: str, **times) -> LimbeckError:
    with client_of(address, **({"timeout": 1.0} | times)) as client, pytest.raises(LimbeckError) as caught:
        client.teacher("t")
    return caught.value


@pytest.mark.parametrize("reason", sorted(set(Reason) - AGAIN))
def test_every_reason_of_the_catalogue_arrives_as_itself(reason):
    problems = [Problem("seven is not six", field="item 7", hint="take six"), Problem("and that")]
    with saying(LimbeckError(reason, "All of it.", problems)) as (servicer, address):
        error = error_of(address, timeout=30.0)
    assert (error.reason, error.message, error.problems) == (reason, "All of it.", tuple(problems))
    assert len(servicer.unary) == 1  # asked once: again would be no use


@pytest.mark.parametrize("reason", sorted(AGAIN))
def test_what_may_pass_is_asked_again_until_time_is_up(reason):
    with saying(LimbeckError(reason)) as (servicer, address):
        assert error_of(address).reason is reason
    assert len(servicer.unary) > 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE),
        (grpc.StatusCode.CANCELLED, Reason.SERVER_UNAVAILABLE),
        (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED),
        (grpc.StatusCode.PERMISSION_DENIED, Reason.PERMISSION_DENIED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUOTA_EXCEEDED),
        (grpc.StatusCode.INTERNAL, Reason.INTERNAL),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
    ],
)
def test_a_status_without_details_has_a_reason_and_the_address(status, reason):
    with saying(status) as (_, address):
        error = error_of(address)
    assert error.reason is reason
    assert error.problems[0].field == address
    assert error.problems[0].message == f"{status.name}: nothing more"


def test_a_request_that_no_server_takes_is_the_callers_fault():
    with (
        serving(Scripted()) as address,
        client_of(address, timeout=5.0) as client,
        pytest.raises(LimbeckError) as caught,
    ):
        client.teacher("t" * (5 << 20))
    assert caught.value.reason is Reason.REQUEST_INVALID
    assert "larger than max" in caught.value.problems[0].message


def test_a_server_of_something_else_is_told_at_once():
    with serving(None) as address:
        began = time.monotonic()
        error = error_of(address, timeout=60.0)
    assert "There is no Limbeck server at this address" in str(error)
    assert time.monotonic() - began < 30


def test_a_web_server_is_no_server():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert error_of(f"127.0.0.1:{server.server_address[1]}").reason is Reason.SERVER_UNAVAILABLE
    finally:
        server.shutdown()
        server.server_close()


def test_nobody_there_is_told_soon_also_by_a_stream():
    with connect("127.0.0.1:9", timeout=0.5, retry_for=600) as client:
        for ask in (client.teachers, lambda: list(client.score("t", items(1), TARGET))):
            with pytest.raises(LimbeckError) as caught:
                ask()
            assert caught.value.reason is Reason.SERVER_UNAVAILABLE
            assert "127.0.0.1:9: UNAVAILABLE" in str(caught.value)
            assert "see that the server runs" in str(caught.value)


def test_a_server_that_never_answers_is_given_up():
    async def never(request, context):
        import asyncio

        await asyncio.Event().wait()

    servicer = Scripted()
    servicer.replies["GetTeacher"] = never
    with serving(servicer) as address:
        error = error_of(address, timeout=0.3)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "DEADLINE_EXCEEDED" in str(error)


def test_a_refused_stream_ends_with_the_servers_error():
    servicer = Scripted(answering(most=0, then=Reason.TEACHER_MISMATCH))
    with serving(servicer) as address, connect(address) as client:
        stream = client.score("t", items(3), TARGET, expect=Expectation(weights_digest="c" * 64))
        with pytest.raises(LimbeckError) as caught:
            next(stream)
    assert caught.value.reason is Reason.TEACHER_MISMATCH
    assert servicer.seen[0].start.expectation.weights_digest == "c" * 64
    assert len(servicer.seen) == 1
