"""limbeck.v1.TeacherService: which call goes where."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from limbeck.errors import LimbeckError, Problem, Reason, nearest, shutting_down
from limbeck.hosting.public import without_paths
from limbeck.interfaces import TeacherInfo
from limbeck.service.auth import Access
from limbeck.service.calls import Calls
from limbeck.service.config import ServeConfig
from limbeck.service.gate import CALL
from limbeck.service.generate_stream import GenerateStream
from limbeck.service.host import TeacherHost
from limbeck.service.metrics import Metrics
from limbeck.service.quotas import Clients
from limbeck.service.replay import Dataset, replay
from limbeck.service.score_stream import ScoreStream
from limbeck.service.streams import Desk, Stream
from limbeck.service.translate import parse, wire_error
from limbeck.signals.messages import error_of
from limbeck.v1 import teacher_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name


class TeacherService:
    """The handlers. Requests and answers are bytes: what a worker encoded is passed on unread."""

    def __init__(
        self,
        config: ServeConfig,
        hosts: Mapping[str, TeacherHost],
        datasets: Mapping[str, Dataset],
        access: Access,
        clients: Clients,
        metrics: Metrics,
    ) -> None:
        self._config, self._hosts, self._datasets, self._metrics = config, hosts, datasets, metrics
        self._access, self._clients = access, clients
        self._desk = Desk(
            self._host, self._describe, self._information, config.limits, config.timing, metrics, access.confirm
        )
        self._open: set[Stream] = set()
        self._calls = Calls()

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        counted = self._calls.counted
        made = {
            "ListTeachers": grpc.unary_unary_rpc_method_handler(counted(self.list_teachers)),
            "GetTeacher": grpc.unary_unary_rpc_method_handler(counted(self.get_teacher)),
            "Score": grpc.stream_stream_rpc_method_handler(counted(self.score)),
            "Generate": grpc.stream_stream_rpc_method_handler(counted(self.generate)),
            "GetOutputHead": grpc.unary_stream_rpc_method_handler(counted(self.get_output_head)),
            "StreamSignals": grpc.unary_stream_rpc_method_handler(counted(self.stream_signals)),
        }
        return grpc.method_handlers_generic_handler(SERVICE, made)

    @property
    def busy(self) -> int:
        """Calls under way."""
        return self._calls.under_way

    @property
    def draining(self) -> bool:
        """Whether no new calls are taken."""
        return self._calls.draining

    def drain(self) -> None:
        """Take no new streams; those open finish what is under way."""
        self._calls.draining = True
        for stream in self._open:
            stream.drain()

    def end(self) -> None:
        """End all streams now, with a word."""
        for stream in self._open:
            stream.end(shutting_down())

    async def list_teachers(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        parse(pb.ListTeachersRequest, request)
        teachers = [self._describe(self._hosts[name]) for name in sorted(self._hosts)]
        datasets = [self._datasets[name].message for name in sorted(self._datasets)]
        return pb.ListTeachersResponse(teachers=teachers, datasets=datasets).SerializeToString()

    async def get_teacher(self, request: bytes, context: Any) -> bytes:
        """See the proto."""
        host = self._host(parse(pb.GetTeacherRequest, request).name)
        return pb.GetTeacherResponse(teacher=self._describe(host)).SerializeToString()

    async def score(self, request: Any, context: Any) -> None:
        """See the proto."""
        await self._stream(ScoreStream, context)

    async def generate(self, request: Any, context: Any) -> None:
        """See the proto."""
        await self._stream(GenerateStream, context)

    async def get_output_head(self, request: bytes, context: Any) -> None:
        """See the proto."""
        host = self._host(parse(pb.GetOutputHeadRequest, request).teacher)
        await host.wait_ready()
        sent = self._metrics.sent.labels("GetOutputHead")
        async with aclosing(host.head()) as responses:
            async for response in responses:
                await context.write(response)
                sent.inc(len(response))

    async def stream_signals(self, request: bytes, context: Any) -> None:
        """See the proto."""
        asked, call = parse(pb.StreamSignalsRequest, request), CALL.get()
        if asked.dataset not in self._datasets:
            raise unknown(Reason.DATASET_UNKNOWN, "dataset", asked.dataset, list(self._datasets))

        def check() -> None:
            self._calls.check()
            self._access.confirm(f"/{SERVICE}/StreamSignals", call.caller)

        sent = self._metrics.sent.labels("StreamSignals")
        call.held.enter_context(self._clients.stream(call.caller.name))
        dataset, timing = self._datasets[asked.dataset], self._config.timing
        async with aclosing(replay(dataset, asked, timing, check)) as messages:
            async for message in messages:
                await context.write(message)
                sent.inc(len(message))

    async def _stream(self, kind: type[Stream], context: Any) -> None:
        call = CALL.get()
        use = call.held.enter_context(self._clients.stream(call.caller.name))
        stream = kind(context, call.caller, use, self._desk)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    def _host(self, name: str) -> TeacherHost:
        if name not in self._hosts:
            raise unknown(Reason.TEACHER_UNKNOWN, "teacher", name, list(self._hosts))
        return self._hosts[name]

    def _information(self, host: TeacherHost) -> TeacherInfo:
        """What a client may rely on."""
        assert host.info is not None, "it is ready"
        if self._config.allow_full:
            return host.info
        return replace(host.info, capabilities=host.info.capabilities - {"full"})

    def _describe(self, host: TeacherHost) -> pb.Teacher:
        message = pb.Teacher()
        message.CopyFrom(host.message)
        message.limits.CopyFrom(self._config.limits.message())
        if message.HasField("error"):
            message.error.CopyFrom(wire_error(error_of(message.error)))  # without paths of this machine
        message.phase = without_paths(message.phase)
        if not self._config.allow_full and "full" in message.capabilities:
            message.capabilities.remove("full")
        return message


def unknown(reason: Reason, what: str, name: str, known: list[str]) -> LimbeckError:
    """There is no `what` of this name."""
    name = name[:80]
    guess = nearest(name, known)
    hint = f"did you mean {guess}?" if guess else f"there are: {', '.join(sorted(known)[:20]) or 'none'}"
    return LimbeckError(reason, problems=[Problem(f"{name!r} is no {what} here", field="name", hint=hint)])
