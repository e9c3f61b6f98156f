"""Around every call of every service: who calls, what went wrong, and the figures of it."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from limbeck.errors import CATALOGUE, LimbeckError, Reason
from limbeck.service.auth import Access, Caller
from limbeck.service.metrics import Metrics
from limbeck.service.translate import refuse

logger = logging.getLogger(__name__)

_PROBES = "/grpc.health.v1."
_PLACED = "/limbeck.v1.TrainingService/"  # errors of runs name files as their clients know them
Enter = Callable[[Any], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way. `held`: what is given back when it is over, with its status told: not before.

    gRPC keeps what a client does not read, a status included, so that a call may be over long after its handler.
    """

    caller: Caller
    held: ExitStack


CALL: ContextVar[Call] = ContextVar("call")


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls in and ends them: a LimbeckError becomes a status, anything else INTERNAL and a line in the log."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler with what is around it; None, which is UNIMPLEMENTED, for a method that does not exist."""
        handler = await continuation(details)
        return None if handler is None else _wrapped(handler, partial(self._around, details.method))

    @asynccontextmanager
    async def _around(self, method: str, context: Any) -> AsyncIterator[None]:
        short = method.rpartition("/")[2]
        start, code, name = time.monotonic(), "CANCELLED", context.peer()
        self._metrics.streams.labels(short).inc()
        held = ExitStack()
        try:
            caller = self._access.admit(method, context)
            CALL.set(Call(caller, held))
            name = caller.name
            yield
            code = "OK"
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except LimbeckError as error:
            code = CATALOGUE[error.reason].status
            self._metrics.errors.labels(str(error.reason)).inc()
            logger.warning("a call was refused: %s", error, extra={"method": short, "client": name})
            await refuse(context, error, placed=method.startswith(_PLACED))
        except NotImplementedError:  # what grpcio's own health service lacks
            code = "UNIMPLEMENTED"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED)
        except Exception:
            code = "INTERNAL"
            self._metrics.errors.labels(str(Reason.INTERNAL)).inc()
            logger.exception("a fault of the server", extra={"method": short, "client": name})
            await refuse(context, LimbeckError(Reason.INTERNAL))
        finally:
            held.close()
            self._metrics.streams.labels(short).dec()
            self._metrics.calls.labels(short, code).inc()
            fields = {"method": short, "client": name, "code": code, "seconds": round(time.monotonic() - start, 3)}
            level = logging.DEBUG if method.startswith(_PROBES) else logging.INFO
            logger.log(level, "call ended", extra=fields)


def _wrapped(handler: Any, enter: Enter) -> Any:
    """`handler` run inside of `enter(context)`, whichever of the four kinds it is."""
    if handler.request_streaming:
        inner, make = (
            (handler.stream_stream, grpc.stream_stream_rpc_method_handler)
            if handler.response_streaming
            else (handler.stream_unary, grpc.stream_unary_rpc_method_handler)
        )
    else:
        inner, make = (
            (handler.unary_stream, grpc.unary_stream_rpc_method_handler)
            if handler.response_streaming
            else (handler.unary_unary, grpc.unary_unary_rpc_method_handler)
        )

    async def answer(request: Any, context: Any) -> Any:
        async with enter(context):
            return await inner(request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with enter(context):
            async for response in inner(request, context):
                yield response

    behaviour = stream if inspect.isasyncgenfunction(inner) else answer
    return make(behaviour, handler.request_deserializer, handler.response_serializer)
