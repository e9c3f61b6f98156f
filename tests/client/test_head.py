"""GetOutputHead: whole and checked, or not at all."""

from __future__ import annotations

import hashlib

import grpc
import numpy as np
import pytest

from limbeck.client import connect
from limbeck.errors import LimbeckError, Reason
from limbeck.signals.fragments import bfloat16_bytes
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .scripted import Scripted, serving

WEIGHT = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
BIAS = np.arange(30, dtype=np.float32)
CONTENT = WEIGHT.tobytes() + BIAS.tobytes()


def head(content: bytes = CONTENT, **changes) -> pb.GetOutputHeadResponse:
    fields = {"vocab_size": 30, "hidden_size": 8, "dtype": signal_pb2.DTYPE_FLOAT32, "bias": True, "scale": 0.5}
    fields |= {"softcap": 30.0, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return pb.GetOutputHeadResponse(head=pb.OutputHead(**(fields | changes)))


def chunks(content: bytes = CONTENT, size: int = 100) -> list[pb.GetOutputHeadResponse]:
    return [
        pb.GetOutputHeadResponse(chunk=pb.Chunk(offset=at, data=content[at : at + size]))
        for at in range(0, len(content), size)
    ]


def fetched(*calls):
    """What a client gets of a server whose calls send this, one after the other."""
    servicer, left, names = Scripted(), list(calls), []

    async def reply(request, context):
        names.append(request.teacher)
        for step in left.pop(0):
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, "as the test wants")
            yield step

    servicer.replies["GetOutputHead"] = reply
    with serving(servicer) as address, connect(address) as client:
        result = client.output_head("t")
    assert names == ["t"] * len(calls)
    return result


def test_a_head_arrives_whole():
    found = fetched([head(), *chunks()])
    np.testing.assert_array_equal(found.weight, WEIGHT)
    np.testing.assert_array_equal(found.bias, BIAS)
    assert (found.scale, found.soft_cap) == (0.5, 30.0)


def test_one_without_bias_and_soft_cap_in_bfloat16():
    content = bfloat16_bytes(WEIGHT)
    found = fetched([head(content, bias=False, softcap=0, dtype=signal_pb2.DTYPE_BFLOAT16), *chunks(content)])
    assert (found.bias, found.soft_cap) == (None, None)
    np.testing.assert_allclose(found.weight, WEIGHT, rtol=2**-8)


@pytest.mark.parametrize("fault", [[grpc.StatusCode.UNAVAILABLE], []], ids=["lost", "ended early"])
def test_it_is_asked_again_after_a_lost_connection(fault):
    found = fetched([head(), *chunks()[:3], *fault], [*fault], [head(), *chunks()])
    np.testing.assert_array_equal(found.weight, WEIGHT)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ([head(sha256="0" * 64), *chunks()], "the checksum"),
        ([head(), *chunks()[1:]], "bytes at 100 came where those at 0 were due"),
        ([head(), *chunks(), *chunks()[-1:]], "were due"),
        ([*chunks()], "were due"),
        ([head(bytes=1 << 40), *chunks()], "are announced, [30, 8] takes 1,080"),
        ([head(CONTENT + b"more")], "1,084 bytes are announced"),
    ],
)
def test_a_head_that_is_not_whole_is_refused(call, told):
    with pytest.raises(LimbeckError) as caught:
        fetched(call)
    assert caught.value.reason is Reason.SIGNAL_INVALID
    assert told in str(caught.value)
