"""The client for asyncio. :mod:`limbeck.client.sync` is the same for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.client.background import Stream, flat
from limbeck.client.calls import Expectation, Generating, Scoring
from limbeck.client.connection import Connection
from limbeck.client.exchange import Exchange
from limbeck.client.head import fetch_head
from limbeck.client.link import Link, Times, Waiting
from limbeck.client.replay import Replay, StoredSignal
from limbeck.client.training import AsyncTraining
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal, SignalHeader
from limbeck.signals.head import OutputHead
from limbeck.signals.messages import error_of, header_of, info_of
from limbeck.v1 import teacher_service_pb2 as pb

CREDIT = 64 << 20
POLL = 0.5  # seconds between two looks at a teacher that starts


@dataclass(frozen=True, slots=True)
class RemoteTeacher:
    """A teacher of a server.

    `state`: `failed` has an `error`; `starting` has a `phase`, what its worker is doing ("loading the weights"), and
    the seconds since that began. `info` is None until it was ready once. Limits hold for one client over all its
    calls: `tokens_in_flight` of what is sent and not answered, `answer_bytes` of one item's answer, `streams` at once;
    the client keeps the first by itself.
    """

    name: str
    state: Literal["starting", "ready", "failed"]
    info: TeacherInfo | None
    error: LimbeckError | None = None
    tokens_in_flight: int = 0
    answer_bytes: int = 0
    streams: int = 0
    phase: str = ""
    phase_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RemoteDataset:
    """Stored signals of a server: `total` sequences in all, 1 … total, also where the capture still grows."""

    name: str
    total: int
    header: SignalHeader


class AsyncClient(AsyncTraining):
    """Teachers, stored signals and runs of a server; made by :func:`connect_async`, used in one event loop.

    Every method raises LimbeckError with a reason of the catalogue: the server's, or SERVER_UNAVAILABLE where it was
    not reached, PEER_SILENT where it said nothing.
    """

    def __init__(self, connection: Connection, times: Times) -> None:
        self._link = Link(connection, times)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection. A second call does nothing."""
        await self._link.close()

    async def teachers(self) -> list[RemoteTeacher]:
        """All teachers, by name."""
        answer = await self._link.ask("ListTeachers", pb.ListTeachersRequest())
        return [_teacher(message) for message in answer.teachers]

    async def datasets(self) -> list[RemoteDataset]:
        """All stored signals, by name."""
        answer = await self._link.ask("ListTeachers", pb.ListTeachersRequest())
        return [RemoteDataset(d.name, int(d.total), header_of(d.header)) for d in answer.datasets]

    async def teacher(
        self, name: str, *, wait: float = 0.0, told: Callable[[RemoteTeacher], object] | None = None
    ) -> RemoteTeacher:
        """One teacher. `wait`: seconds to wait for one that starts. Raises TEACHER_UNKNOWN.

        While it waits, the log says what the teacher is doing; `told`, where given, hears it instead, twice a second.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        log = Waiting(name, self._link.times.alive)
        while True:
            message = (await self._link.ask("GetTeacher", pb.GetTeacherRequest(name=name))).teacher
            found = _teacher(message)
            if found.info is not None:
                await self._link.seen(message)
            if found.state != "starting" or loop.time() >= end:
                return found
            if told is None:
                log.hear(found.phase, found.phase_seconds)
            else:
                told(found)
            await asyncio.sleep(min(POLL, max(end - loop.time(), 0.0)))

    def score(
        self,
        teacher: str | RemoteTeacher,
        items: Iterable[ScoreItem] | AsyncIterable[ScoreItem],
        want: Want,
        *,
        expect: Expectation | None = None,
        bfloat16: bool = False,
        alone: bool = False,
        credit: int = CREDIT,
    ) -> AsyncGenerator[tuple[int, Signal], None]:
        """(item_id, signal) of each item, once, as they are ready. `items` are taken as the server's limit allows.

        `expect`: refuse any other teacher; a RemoteTeacher expects itself. `bfloat16`: hidden states come half as
        large. `alone`: items share batches with nobody else's, so that the same items give the same bits. `credit`:
        bytes of answers that may be under way and unread; a caller that is slow holds the server back. The error of an
        item that cannot be scored ends the call, after the answers before it.
        """
        stream = self.scoring(teacher, items, want, expect=expect, bfloat16=bfloat16, alone=alone, credit=credit)
        return flat(stream)

    def scoring(
        self,
        teacher: str | RemoteTeacher,
        items: Iterable[ScoreItem] | AsyncIterable[ScoreItem],
        want: Want,
        *,
        expect: Expectation | None = None,
        bfloat16: bool = False,
        alone: bool = False,
        credit: int = CREDIT,
    ) -> Stream[tuple[int, Signal]]:
        """:meth:`score` as lists of answers, for whoever is in another event loop or in none."""
        call = Scoring(_name(teacher), want, _expected(teacher, expect), bfloat16=bfloat16, alone=alone, credit=credit)
        return Exchange(self._link, call, items)

    def generate(
        self,
        teacher: str | RemoteTeacher,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        sampling: Sampling,
        *,
        expect: Expectation | None = None,
    ) -> AsyncGenerator[Completion, None]:
        """The continuation of each prompt, once, as they are ready. See :meth:`score`."""
        return flat(self.generating(teacher, prompts, sampling, expect=expect))

    def generating(
        self,
        teacher: str | RemoteTeacher,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        sampling: Sampling,
        *,
        expect: Expectation | None = None,
    ) -> Stream[Completion]:
        """:meth:`generate` as lists of answers; see :meth:`scoring`."""
        return Exchange(self._link, Generating(_name(teacher), sampling, _expected(teacher, expect)), prompts)

    async def output_head(self, teacher: str | RemoteTeacher) -> OutputHead:
        """The teacher's output head, float32, its checksum verified. Raises CAPABILITY_MISSING where it has none."""
        return await fetch_head(self._link, _name(teacher))

    def signals(
        self,
        dataset: str | RemoteDataset,
        *,
        after: int = 0,
        tokens: bool = False,
        expect: Expectation | None = None,
    ) -> AsyncGenerator[StoredSignal, None]:
        """Stored signals after sequence `after`, each once and in order, also while the capture still grows.

        `tokens`: with the token ids and which of them are trained. Ends after the last sequence.
        """
        return flat(self.replaying(dataset, after=after, tokens=tokens, expect=expect))

    def replaying(
        self,
        dataset: str | RemoteDataset,
        *,
        after: int = 0,
        tokens: bool = False,
        expect: Expectation | None = None,
    ) -> Stream[StoredSignal]:
        """:meth:`signals` as lists; see :meth:`scoring`."""
        name = dataset if isinstance(dataset, str) else dataset.name
        return Replay(self._link, name, after, tokens, expect or Expectation())


def connect_async(
    address: str | Sequence[str],
    *,
    token: str | None = None,
    token_file: str | Path | None = None,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    insecure: bool = False,
    timeout: float = 10.0,
    retry_for: float = 300.0,
) -> AsyncClient:
    """A client of the server at `address`, for asyncio. See :func:`limbeck.client.connect`."""
    connection = Connection.of(
        address,
        token=token,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
    )
    return AsyncClient(connection, Times(timeout=timeout, retry_for=retry_for))


def _name(teacher: str | RemoteTeacher) -> str:
    return teacher if isinstance(teacher, str) else teacher.name


def _expected(teacher: str | RemoteTeacher, expect: Expectation | None) -> Expectation:
    if expect is None and isinstance(teacher, RemoteTeacher) and teacher.info is not None:
        info = teacher.info
        return Expectation(info.tokenizer_digest, info.weights_digest, info.vocab_size)
    return expect or Expectation()


_STATES: dict[int, Literal["starting", "ready", "failed"]] = {
    pb.Teacher.STATE_STARTING: "starting",
    pb.Teacher.STATE_READY: "ready",
    pb.Teacher.STATE_FAILED: "failed",
}


def _teacher(message: pb.Teacher) -> RemoteTeacher:
    if message.state not in _STATES:
        problem = Problem(f"its state is {message.state}, which is not known here", field=message.name)
        raise LimbeckError(Reason.INTERNAL, "The server sent what this client does not understand.", [problem])
    limits = message.limits
    return RemoteTeacher(
        name=message.name,
        state=_STATES[message.state],
        info=info_of(message) if message.vocab_size else None,
        error=error_of(message.error) if message.HasField("error") else None,
        tokens_in_flight=int(limits.tokens_in_flight),
        answer_bytes=int(limits.answer_bytes),
        streams=int(limits.streams),
        phase=message.phase,
        phase_seconds=message.phase_seconds,
    )
