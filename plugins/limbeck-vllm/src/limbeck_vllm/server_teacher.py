"""The teacher `vllm-server`: scores and texts of a server by HTTP, token ids in and out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

from limbeck.client.sync import BACKGROUND, from_any_loop
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal
from limbeck.teachers.requests import check_prompts, check_score
from limbeck_vllm.server_answers import Rows, completion, written
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_facts import COMPLETIONS, Facts, learn, request
from limbeck_vllm.server_http import Endpoint, WrongAnswer, whole
from limbeck_vllm.server_stream import Answers

T = TypeVar("T")


class VllmServerTeacher:
    """Implements :class:`limbeck.interfaces.Teacher` by a vLLM server; may be used from any thread and event loop.

    One sequence is one request. All requests of all calls share the server's `concurrency`; closing a call cancels
    its requests, which vLLM then drops.
    """

    def __init__(self, config: VllmServerConfig) -> None:
        self.config = config

    @cached_property
    def _endpoint(self) -> Endpoint:
        return Endpoint(self.config)

    @cached_property
    def _facts(self) -> Facts:
        return BACKGROUND.run(learn(self._endpoint, self.config))

    def info(self) -> TeacherInfo:
        """What the server and the tokenizer's folder say, asked once.

        Raises SERVER_UNAVAILABLE, TEACHER_REFUSED, TOKENIZER_MISMATCH, MODEL_INVALID.
        """
        return self._facts.info

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, SCORING_FAILED, SERVER_UNAVAILABLE."""
        check_score(self.info(), items, want)
        self._check_k(want.top_k)
        return self._answers(items, lambda item: self._score(item, want))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, GENERATION_FAILED, SERVER_UNAVAILABLE."""
        check_prompts(self.info(), prompts, sampling)
        self._check_k(sampling.logprobs)
        return self._answers(prompts, lambda prompt: self._write(prompt, sampling))

    async def close(self) -> None:
        """End the connections. A second call does nothing."""
        if "_endpoint" in vars(self):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._endpoint.close(), BACKGROUND.loop))

    def _answers(
        self, things: Sequence[Any], ask: Callable[[Any], Coroutine[Any, Any, Any]]
    ) -> AsyncGenerator[Any, None]:
        return from_any_loop(Answers([partial(ask, thing) for thing in things], self.config.concurrency))

    def _check_k(self, k: int) -> None:
        most = self._facts.most
        if k > most:
            message = f"{k} log-probabilities are asked for, the server at {self.config.address} gives up to {most}"
            hint = f"start it with --max-logprobs {k}, or lower top_k"
            problem = Problem(message, field="top_k", hint=hint)
            raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])

    async def _score(self, item: ScoreItem, want: Want) -> tuple[int, Signal]:
        field = f"item {item.item_id}"
        behind = item.first_row + item.n == len(item.ids)  # the last row speaks of a token that is not there
        rows = Rows(item, want.top_k, self._facts.info.vocab_size)
        body = request(
            self._facts.model,
            item.ids.tolist(),
            prompt_logprobs=want.top_k,
            logprobs=want.top_k if behind else None,
        )

        async def read(chunks: Any) -> Rows:
            answer = await rows.read(chunks)
            if behind:
                _, _, best = written(_choice(answer), want.top_k)
                rows.put(item.n - 1, len(item.ids) - 1, best[0])
            return rows

        reason = Reason.SCORING_FAILED
        await self._endpoint.ask(COMPLETIONS, body, read=read, reason=reason, field=field)
        return item.item_id, _named(lambda: rows.signal(want), field)

    async def _write(self, prompt: Prompt, sampling: Sampling) -> Completion:
        field = f"item {prompt.item_id}"
        info = self._facts.info
        body = request(
            self._facts.model,
            prompt.ids.tolist(),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=_seed(sampling.seed, prompt.item_id),
            stop_token_ids=list(info.eos_ids),
            logprobs=sampling.logprobs or None,
        )
        ends = frozenset(info.eos_ids)

        async def read(chunks: Any) -> Completion:
            choice = _choice(await whole(chunks))
            return _named(lambda: completion(prompt, choice, sampling, ends, info.vocab_size), field)

        reason = Reason.GENERATION_FAILED
        return await self._endpoint.ask(COMPLETIONS, body, read=read, reason=reason, field=field)


def _choice(answer: Any) -> dict[str, Any]:
    try:
        (choice,) = answer["choices"]
        return dict(choice)
    except (KeyError, TypeError, ValueError):
        raise WrongAnswer("its answer has not the one choice that was asked for: is it a vLLM server?") from None


def _named(make: Callable[[], T], field: str) -> T:
    """What `make` gives; its error is told of the item `field`."""
    try:
        return make()
    except LimbeckError as error:
        problems = [replace(problem, field=field) for problem in error.problems]
        raise LimbeckError(error.reason, error.message, problems) from error


def _seed(seed: int, item_id: int) -> int:
    """A number of 63 bits, so that a draw depends on (seed, item) alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item_id}".encode()).digest()[:8], "big") >> 1
