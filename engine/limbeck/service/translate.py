"""Errors on their way to a client: the status of a call, and what may be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from limbeck.errors import CATALOGUE, LimbeckError, Problem, Reason
from limbeck.hosting.public import without_paths
from limbeck.signals.messages import error_message
from limbeck.v1 import error_pb2

DETAIL_BYTES = 4 << 10  # base64 and the text beside it keep the trailers under 7 KiB, and gRPC takes 8
TEXT_BYTES = 512


def public(error: LimbeckError) -> LimbeckError:
    """The error without paths of this machine: of each only its last name is left."""
    problems = [
        replace(problem, message=without_paths(problem.message), hint=problem.hint and without_paths(problem.hint))
        for problem in error.problems
    ]
    return LimbeckError(error.reason, without_paths(error.message), problems)


def wire_error(error: LimbeckError) -> error_pb2.Error:
    """The error as it travels, at most 4 KiB: problems that do not fit are counted."""
    message = error_message(public(error))
    left_out = len(error.problems) - len(message.problems)
    while message.ByteSize() > DETAIL_BYTES and message.problems:
        del message.problems[-1]
        left_out += 1
    if left_out and message.problems:
        message.problems[-1].CopyFrom(error_pb2.Problem(message=f"and {left_out + 1} more problems"))
    return message


def status_of(error: LimbeckError) -> Any:
    """What `context.abort_with_status` takes."""
    code = grpc.StatusCode[CATALOGUE[error.reason].status]
    detail = wire_error(error)
    first = f" {detail.problems[0].message}" if detail.problems else ""
    text = f"{error.reason}: {detail.message}{first}".encode()[:TEXT_BYTES].decode(errors="ignore")
    status = status_pb2.Status(code=code.value[0], message=text)
    status.details.add().Pack(detail)
    return rpc_status.to_status(status)


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: LimbeckError) -> NoReturn:
    """End a call with an error."""
    await context.abort_with_status(status_of(error))
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
