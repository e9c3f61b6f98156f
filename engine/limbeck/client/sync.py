"""The client without asyncio: the same calls, run by one background thread of the process."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable, Sequence
from pathlib import Path

from limbeck.client.aio import CREDIT, AsyncClient, RemoteDataset, RemoteTeacher, connect_async
from limbeck.client.background import BACKGROUND, each, from_any_loop, in_background
from limbeck.client.calls import Expectation
from limbeck.client.replay import StoredSignal
from limbeck.client.sync_training import Training
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, Want
from limbeck.signals import Signal
from limbeck.signals.head import OutputHead

__all__ = ["BACKGROUND", "Client", "connect", "from_any_loop", "in_background"]


class Client(Training):
    """Teachers, stored signals and runs of a server; made by :func:`connect`. May be used by several threads.

    Every method raises LimbeckError, see :class:`limbeck.client.AsyncClient`, whose methods these are.
    """

    _client: AsyncClient

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and the connection. A second call does nothing."""
        BACKGROUND.run(self._client.close())

    def teachers(self) -> list[RemoteTeacher]:
        """All teachers, by name."""
        return BACKGROUND.run(self._client.teachers())

    def datasets(self) -> list[RemoteDataset]:
        """All stored signals, by name."""
        return BACKGROUND.run(self._client.datasets())

    def teacher(
        self, name: str, *, wait: float = 0.0, told: Callable[[RemoteTeacher], object] | None = None
    ) -> RemoteTeacher:
        """One teacher. `wait`: seconds to wait for one that starts. Raises TEACHER_UNKNOWN.

        While it waits, the log says what the teacher is doing; `told`, where given, hears it instead, twice a second,
        in the client's own thread.
        """
        return BACKGROUND.run(self._client.teacher(name, wait=wait, told=told))

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
    ) -> Generator[tuple[int, Signal], None, None]:
        """(item_id, signal) of each item, once, as they are ready. See :meth:`limbeck.client.AsyncClient.score`.

        An iterator of items is read ahead, in a thread of its own.
        """
        stream = self._client.scoring(
            teacher, items, want, expect=expect, bfloat16=bfloat16, alone=alone, credit=credit
        )
        return each(stream)

    def generate(
        self,
        teacher: str | RemoteTeacher,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        sampling: Sampling,
        *,
        expect: Expectation | None = None,
    ) -> Generator[Completion, None, None]:
        """The continuation of each prompt, once, as they are ready."""
        return each(self._client.generating(teacher, prompts, sampling, expect=expect))

    def output_head(self, teacher: str | RemoteTeacher) -> OutputHead:
        """The teacher's output head, float32, its checksum verified. Raises CAPABILITY_MISSING where it has none."""
        return BACKGROUND.run(self._client.output_head(teacher))

    def signals(
        self,
        dataset: str | RemoteDataset,
        *,
        after: int = 0,
        tokens: bool = False,
        expect: Expectation | None = None,
    ) -> Generator[StoredSignal, None, None]:
        """Stored signals after sequence `after`, each once and in order, also while the capture still grows."""
        return each(self._client.replaying(dataset, after=after, tokens=tokens, expect=expect))


def connect(
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
) -> Client:
    """A client of the server at `address`: ``host:port``, or several of them for replicas, which are used in turn.

    Nothing is sent before the first call. TLS is used unless the address is of this machine or `insecure` says so;
    `tls_ca` (PEM) replaces the usual authorities, `tls_cert` and `tls_key` are the client's own. `timeout`: seconds of
    a call that asks for one thing, and of the first contact. `retry_for`: seconds that an interrupted stream is tried
    again without an answer. Raises REQUEST_INVALID with everything that is wrong with these.
    """
    client = connect_async(
        address,
        token=token,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        timeout=timeout,
        retry_for=retry_for,
    )
    return Client(client)
