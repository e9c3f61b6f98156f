"""What a call ended with, as an error of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.messages import error_of
from limbeck.v1 import error_pb2

RECIPE = "recipe"  # what servers call the recipe that they were sent
_DETAILS = "grpc-status-details-bin"
_OF_STATUS = {  # for a status that no Limbeck server said: proxies, other servers, gRPC itself
    "UNAVAILABLE": Reason.SERVER_UNAVAILABLE,
    "CANCELLED": Reason.SERVER_UNAVAILABLE,
    "ABORTED": Reason.SERVER_UNAVAILABLE,
    "DEADLINE_EXCEEDED": Reason.SERVER_UNAVAILABLE,
    "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
    "PERMISSION_DENIED": Reason.PERMISSION_DENIED,
    "RESOURCE_EXHAUSTED": Reason.QUOTA_EXCEEDED,
    "UNIMPLEMENTED": Reason.REQUEST_INVALID,
}
_BROKEN = ("RST_STREAM", "Stream removed", "GOAWAY", "Connection reset", "Socket closed", "Broken pipe")
_KNOWN_BY = "name the certificate that it, or its authority, is known by: tls_ca, --tls-ca on the command line"
_UNREACHED = (  # what gRPC says where there is no connection, and what to do
    ("CERTIFICATE_VERIFY_FAILED", f"the server's certificate is not trusted here: {_KNOWN_BY}"),
    ("WRONG_VERSION_NUMBER", "the server speaks no TLS: leave tls_ca, --tls-ca, out; elsewhere too with insecure"),
    ("backends failing; last error: UNAVAILABLE", f"see that the server runs; where it speaks TLS, {_KNOWN_BY}"),
    ("", "see that the server runs, and that address and TLS are its own"),
)
AGAIN = frozenset(
    {Reason.SERVER_UNAVAILABLE, Reason.TEACHER_UNAVAILABLE, Reason.PEER_SILENT, Reason.QUOTA_EXCEEDED}
)  # the same call may go well a little later


def error_of_call(error: Any, address: str) -> LimbeckError:
    """The error of a grpc.aio.AioRpcError: the server's own where it sent one, else by the status alone."""
    sent = _sent(error)
    if sent is not None:
        return sent
    status, text = error.code().name, " ".join(str(error.details() or "").split())
    reason = _OF_STATUS.get(status, Reason.INTERNAL)
    if any(sign in text for sign in _BROKEN):
        reason = Reason.SERVER_UNAVAILABLE
    elif "larger than max" in text:  # it came from the server where the server did not say it
        reason = Reason.REQUEST_INVALID if "SERVER: " in text else Reason.INTERNAL
    message, hint = None, None
    if reason is Reason.SERVER_UNAVAILABLE:
        hint = next(hint for sign, hint in _UNREACHED if sign in text)
    elif status == "UNIMPLEMENTED":
        message, hint = "There is no Limbeck server at this address.", "see the address, or update the server"
    elif reason is Reason.INTERNAL:
        message = "The call failed."
    return LimbeckError(
        reason, message, [Problem(f"{status}: {text or 'nothing more is known'}", field=address, hint=hint)]
    )


def silent(address: str, seconds: float) -> LimbeckError:
    """Nothing came for too long."""
    return LimbeckError(Reason.PEER_SILENT, problems=[Problem(f"nothing came for {seconds:g} s", field=address)])


def unavailable(address: str, message: str) -> LimbeckError:
    """A call that ended without what was due."""
    return LimbeckError(Reason.SERVER_UNAVAILABLE, problems=[Problem(message, field=address)])


def of_item(error: LimbeckError, item_id: int) -> LimbeckError:
    """The error with the item's name in it, where it has none."""
    name = f"item {item_id}"
    if any((problem.field or "").startswith(name) for problem in error.problems):
        return error
    problems = error.problems or (Problem(error.message),)
    return LimbeckError(
        error.reason, error.message, [replace(problem, field=problem.field or name) for problem in problems]
    )


def in_file(error: LimbeckError, file: str) -> LimbeckError:
    """The error with the recipe's own name in it, `file`; the server knows it as "recipe"."""
    return LimbeckError(error.reason, error.message, [own_place(problem, file) for problem in error.problems])


def own_place(problem: Problem, file: str) -> Problem:
    """See :func:`in_file`."""
    return replace(problem, file=file) if problem.file == RECIPE else problem


def _sent(error: Any) -> LimbeckError | None:
    """The limbeck.v1.Error of the status details, if any."""
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                message = error_pb2.Error()
                if detail.Is(message.DESCRIPTOR) and detail.Unpack(message):
                    return error_of(message)
        except DecodeError:
            return None
    return None
