"""The teacher `limbeck`: a teacher of another Limbeck server. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import cached_property

from limbeck.client.aio import AsyncClient, RemoteTeacher, connect_async
from limbeck.client.sync import BACKGROUND, from_any_loop
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal
from limbeck.signals.head import OutputHead
from limbeck.teachers.config import LimbeckConfig
from limbeck.teachers.requests import check_prompts, check_score


class LimbeckTeacher:
    """Implements :class:`limbeck.interfaces.HeadTeacher` by a server; may be used from any thread and event loop.

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
        found = BACKGROUND.run(self._client.teacher(self.config.teacher, wait=self.config.retry_for))
        if found.error is not None:
            raise found.error
        if found.info is None:
            problem = Problem(f"it still starts after {self.config.retry_for:g} s", field=self.config.teacher)
            raise LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[problem])
        return found

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
        question = self._client.output_head(self.config.teacher)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, BACKGROUND.loop))

    async def close(self) -> None:
        """End the connection. A second call does nothing."""
        if "_client" in vars(self):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._client.close(), BACKGROUND.loop))
