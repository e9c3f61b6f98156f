"""Messages of Score calls over a raw stub, for tests."""

from __future__ import annotations

from limbeck.interfaces import Want
from limbeck.signals.messages import header_for
from limbeck.v1 import teacher_service_pb2 as pb

from .served import INFO

MIB = 1 << 20
ROW = sum(header_for(INFO, Want(top_k=4)).row_bytes.values())
COST = 2 * ROW  # of the answer to `item`


def start(*, credit: int = 64 * MIB, **more) -> pb.ScoreRequest:
    """The first message of a call."""
    want = more.pop("want", pb.Want(top_k=4))
    return pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=want, credit=credit, **more))


def items(*them: pb.ScoreItem, alone: bool = False) -> pb.ScoreRequest:
    """Items of a call."""
    return pb.ScoreRequest(items=pb.ScoreItems(items=them, alone=alone))


def grant(number: int) -> pb.ScoreRequest:
    """Credit."""
    return pb.ScoreRequest(grant=pb.Grant(bytes=number))


def alive() -> pb.ScoreRequest:
    """A sign of life."""
    return pb.ScoreRequest(alive=pb.Alive())


async def opened(stub, **more):
    """A call that has started."""
    call = stub.Score()
    await call.write(start(**more))
    while (started := await call.read()).WhichOneof("kind") == "alive":
        pass
    assert started.WhichOneof("kind") == "started"
    return call
