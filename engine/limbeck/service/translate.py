"""Errors on their way to a client: the status of a call, and what may be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from limbeck.errors import CATALOGUE, LimbeckError, Problem, Reason
from limbeck.hosting.public import Public
from limbeck.signals.messages import error_message
from limbeck.v1 import error_pb2

DETAIL_BYTES = 4 << 10  # base64 and the text beside it keep the trailers under 7 KiB, and gRPC takes 8
TEXT_BYTES = 512
_PUBLIC = Public()


def public(error: LimbeckError, *, placed: bool = False) -> LimbeckError:
    """The error without paths of this machine: of each in a text only its last name is left.

    `placed`: its files are named as clients know them, so that they are told, with line and column.
    """
    told = [
        problem if placed and problem.file else replace(problem, file=None, line=None, column=None)
        for problem in error.problems
    ]
    return LimbeckError(error.reason, _PUBLIC(error.message), [_PUBLIC.problem(one) for one in told])


def wire_error(error: LimbeckError, *, placed: bool = False) -> error_pb2.Error:
    """The error as it travels, at most 4 KiB: problems that do not fit are counted. `placed`: see :func:`public`."""
    message = error_message(public(error, placed=placed))
    problems = message.problems
    while message.ByteSize() > DETAIL_BYTES and len(problems) > 1:
        del problems[-1]
    while message.ByteSize() > DETAIL_BYTES:  # of one problem: the first is told in any case
        name = max(("message", "file", "field", "hint"), key=lambda name: len(getattr(problems[0], name)))
        setattr(problems[0], name, getattr(problems[0], name)[: len(getattr(problems[0], name)) // 2])
    if len(problems) < len(error.problems):
        del problems[max(1, len(problems) - 1) :]  # room for the count
        problems.add(message=f"and {len(error.problems) - len(problems)} more problems")
    return message


def status_of(error: LimbeckError, *, placed: bool = False) -> Any:
    """What `context.abort_with_status` takes. `placed`: see :func:`public`."""
    code = grpc.StatusCode[CATALOGUE[error.reason].status]
    detail = wire_error(error, placed=placed)
    first = f" {detail.problems[0].message}" if detail.problems else ""
    text = f"{error.reason}: {detail.message}{first}".encode()[:TEXT_BYTES].decode(errors="ignore")
    status = status_pb2.Status(code=code.value[0], message=text)
    status.details.add().Pack(detail)
    return rpc_status.to_status(status)


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: LimbeckError, *, placed: bool = False) -> NoReturn:
    """End a call with an error. `placed`: see :func:`public`."""
    await context.abort_with_status(status_of(error, placed=placed))
    raise AssertionError("abort does not return")


def parse(kind: type[Any], raw: bytes) -> Any:
    """A request. Raises REQUEST_INVALID for bytes that are none."""
    message: Message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        problem = Problem(f"{len(raw)} bytes are no {kind.DESCRIPTOR.full_name}")
        raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem]) from error
    return message
