"""The teacher `limbeck`: a teacher of another Limbeck server. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import cached_property

from limbeck.client.aio import POLL, AsyncClient, RemoteTeacher, connect_async
from limbeck.client.link import Waiting
from limbeck.client.sync import BACKGROUND, from_any_loop, in_background
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal
from limbeck.signals.head import OutputHead
from limbeck.teachers.config import LimbeckConfig
from limbeck.teachers.requests import check_prompts, check_score


class LimbeckTeacher:
    """Implements :class:`limbeck.interfaces.HeadTeacher` and `StartingTeacher` by a server.

    May be used from any thread and event loop.

    A call's items are sent together and scored with nobody else's, so that they get the bits that the teacher gives in
    process. With several addresses each call goes to the next replica; one that is lost is asked again of another.
    """

    def __init__(self, config: LimbeckConfig) -> None:
        self.config = config

    @cached_property
    def _client(self) -> AsyncClient:
        config = self.config
        return connect_async(
            config.address,
            token_file=config.token_file,
            tls_ca=config.tls_ca,
            tls_cert=config.tls_cert,
            tls_key=config.tls_key,
            insecure=config.insecure,
            retry_for=config.retry_for,
        )

    @cached_property
    def _teacher(self) -> RemoteTeacher:
        log = Waiting(self.config.teacher)
        return BACKGROUND.run(self._found(lambda found: log.hear(found.phase, found.phase_seconds)))

    async def _found(self, told: Callable[[RemoteTeacher], object]) -> RemoteTeacher:
        """The teacher once it is ready. Waits as long as its start goes on: `retry_for` seconds for each phase."""
        name, patience = self.config.teacher, self.config.retry_for
        loop = asyncio.get_running_loop()
        phase, since = "", loop.time()
        while True:
            found = await self._client.teacher(name)
            if found.error is not None:
                raise found.error
            if found.info is not None:
                return found
            if found.phase != phase:
                phase, since = found.phase, loop.time()
            if loop.time() >= since + patience:
                text = f"it still starts: {phase or 'nothing is told'}, for {max(found.phase_seconds, patience):.0f} s"
                hint = "see the server's log, or raise retry_for"
                raise LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[Problem(text, field=name, hint=hint)])
            told(found)
            await asyncio.sleep(min(POLL, patience))

    async def start(self, told: Callable[[str], object]) -> None:
        """See :class:`limbeck.interfaces.StartingTeacher`: waits for a teacher that starts, and tells its phases."""
        before = ""

        def tell(found: RemoteTeacher) -> None:
            nonlocal before
            if found.phase != before:
                before = found.phase
                told(found.phase)

        if "_teacher" not in vars(self):
            self._teacher = await in_background(self._found(tell))

    def info(self) -> TeacherInfo:
        """What the server says of it, asked once; waits for a teacher that starts. Raises what the server raises."""
        info = self._teacher.info
        assert info is not None
        return info

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises what :func:`check_score` and the server raise."""
        check_score(self.info(), items, want)
        bfloat16 = self.config.hidden_dtype == "bfloat16"
        return from_any_loop(self._client.scoring(self._teacher, items, want, alone=True, bfloat16=bfloat16))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises what :func:`check_prompts` and the server raise."""
        check_prompts(self.info(), prompts, sampling)
        return from_any_loop(self._client.generating(self._teacher, prompts, sampling))

    async def output_head(self) -> OutputHead:
        """See :class:`limbeck.interfaces.HeadTeacher`."""
        return await in_background(self._client.output_head(self.config.teacher))

    async def close(self) -> None:
        """End the connection. A second call does nothing."""
        if "_client" in vars(self):
            await in_background(self._client.close())
