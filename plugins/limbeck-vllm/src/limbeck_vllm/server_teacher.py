"""The teacher `vllm-server`: scores and texts of a server, token ids in and out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

from limbeck.client.sync import BACKGROUND, from_any_loop
from limbeck.errors import LimbeckError
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal
from limbeck.teachers.requests import check_prompts, check_score
from limbeck_vllm.questions import check_sampling
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_facts import Facts, learn
from limbeck_vllm.server_stream import Answers
from limbeck_vllm.server_wire import Wire

Thing = TypeVar("Thing", ScoreItem, Prompt)
T = TypeVar("T")


class VllmServerTeacher:
    """Implements :class:`limbeck.interfaces.Teacher` by a vLLM server; may be used from any thread and event loop.

    One sequence is one request. All requests of all calls share the server's `concurrency`; closing a call cancels
    its requests, which vLLM then drops.
    """

    def __init__(self, config: VllmServerConfig) -> None:
        self.config = config
        self._asking = threading.Lock()

    @cached_property
    def _kind(self) -> Callable[[VllmServerConfig], Wire]:
        if self.config.protocol == "grpc":
            from limbeck_vllm.server_grpc import GrpcWire

            return GrpcWire
        from limbeck_vllm.server_openai import OpenAIWire

        return OpenAIWire

    @cached_property
    def _facts(self) -> Facts:
        async def asked(kind: Callable[[VllmServerConfig], Wire]) -> Facts:
            wire = kind(self.config)
            try:
                return await learn(wire, self.config)
            finally:  # who only wants to know what it is leaves no connection open
                await wire.close()

        return BACKGROUND.run(asked(self._kind))

    @cached_property
    def _wire(self) -> Wire:
        async def made() -> Wire:  # in the event loop that it will live in
            wire = self._kind(self.config)
            wire.model = self._facts.model
            return wire

        return BACKGROUND.run(made())

    def info(self) -> TeacherInfo:
        """What the server and the tokenizer's folder say, asked once.

        Raises SERVER_UNAVAILABLE, TEACHER_REFUSED, TOKENIZER_MISMATCH, MODEL_INVALID, EXTRA_MISSING.
        """
        with self._asking:
            return self._facts.info

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, SCORING_FAILED, SERVER_UNAVAILABLE."""
        with self._option(want.top_k):
            check_score(self.info(), items, want)
        return self._answers(items, lambda wire, item: self._score(wire, item, want))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, GENERATION_FAILED, SERVER_UNAVAILABLE."""
        with self._option(sampling.logprobs):
            check_prompts(self.info(), prompts, sampling)
        check_sampling(sampling)
        return self._answers(prompts, lambda wire, prompt: self._write(wire, prompt, sampling))

    async def close(self) -> None:
        """End the connections. A second call does nothing."""
        if "_wire" in vars(self):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._wire.close(), BACKGROUND.loop))

    def _answers(
        self, things: Sequence[Thing], ask: Callable[[Wire, Thing], Coroutine[Any, Any, T]]
    ) -> AsyncGenerator[T, None]:
        with self._asking:  # all calls of all threads share one, and with it the bound
            wire = self._wire
        return from_any_loop(Answers([partial(ask, wire, thing) for thing in things], self.config.concurrency))

    @contextmanager
    def _option(self, k: int) -> Iterator[None]:
        """Say of a `k` that is too large what the server must be started with."""
        try:
            yield
        except LimbeckError as error:
            hint = f"start the server with --max-logprobs {k + self._facts.spare}, or ask for fewer"
            if k <= self._facts.most:
                raise
            problems = [replace(p, hint=hint) if p.field in ("top_k", "logprobs") else p for p in error.problems]
            raise LimbeckError(error.reason, error.message, problems) from error

    async def _score(self, wire: Wire, item: ScoreItem, want: Want) -> tuple[int, Signal]:
        rows = await wire.score(item, want.top_k, self._facts.info.vocab_size)
        try:
            return item.item_id, rows.signal(item, want)
        except LimbeckError as error:
            raise _named(error, item.item_id) from error

    async def _write(self, wire: Wire, prompt: Prompt, sampling: Sampling) -> Completion:
        info = self._facts.info
        try:
            return await wire.write(prompt, sampling, info.eos_ids, info.vocab_size)
        except LimbeckError as error:
            raise _named(error, prompt.item_id) from error


def _named(error: LimbeckError, item_id: int) -> LimbeckError:
    """The same error, told of an item."""
    problems = [replace(problem, field=problem.field or f"item {item_id}") for problem in error.problems]
    return LimbeckError(error.reason, error.message, problems)
