"""The teacher `openai` behind Limbeck's interface."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from limbeck.client.sync import BACKGROUND, from_any_loop
from limbeck.errors import LimbeckError
from limbeck.files import digest
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt, TextTeacherInfo
from limbeck_openai.asking import Asking
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.desk import Desk
from limbeck_openai.keys import read_key
from limbeck_openai.requests import Request, check_request, make_request
from limbeck_openai.tally import Tally

T = TypeVar("T")


class OpenAITeacher:
    """Implements :class:`limbeck.interfaces.TextTeacher`; may be used from any thread and event loop.

    All calls run in one event loop of a thread of its own, so that rate limits, budget and cache are the same for all.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._tally = Tally()
        self._desk: Desk | None = None

    def info(self) -> TextTeacherInfo:
        """What it is. No call is made."""
        config = self.config
        told = frozenset({"generate", "generate_top_k"} if config.logprobs else {"generate"})
        warnings: tuple[str, ...] = ()
        try:
            read_key(config.key_env)
        except LimbeckError as error:
            warnings = tuple(map(str, error.problems))
        depends = [config.base_url, config.api, config.model, config.served_as, config.fields, config.extra]
        return TextTeacherInfo(
            name="openai",
            model=config.model,
            digest=digest(["openai", *depends, config.reasoning_tag]),
            capabilities=told,
            max_logprobs=config.logprobs,
            price=(config.price.input, config.price.output) if config.price else None,
            currency=config.price.currency if config.price else "USD",
            warnings=warnings,
        )

    def complete(self, prompts: Sequence[TextPrompt], sampling: Sampling) -> AsyncGenerator[TextCompletion, None]:
        """See :class:`limbeck.interfaces.TextTeacher`. Closing waits for the calls that are under way: `timeout`.

        Raises CAPABILITY_MISSING, GENERATION_FAILED before any work; TEACHER_REFUSED, TEACHER_MISMATCH,
        SERVER_UNAVAILABLE, BUDGET_EXHAUSTED; and of the cache DISK_FULL, STORE_DAMAGED, RUN_LOCKED, FOLDER_NOT_OURS.
        """
        check_request(self.config, self.info(), prompts, sampling)
        return self._complete(prompts, sampling)

    async def _complete(
        self, prompts: Sequence[TextPrompt], sampling: Sampling
    ) -> AsyncGenerator[TextCompletion, None]:
        requests = [(prompt.item_id, make_request(self.config, prompt, sampling)) for prompt in prompts]
        asking = await _there(self._begin(requests))
        async for answer in from_any_loop(asking):
            yield answer

    async def _begin(self, requests: Sequence[tuple[int, Request]]) -> Asking:
        with self._lock:
            if self._desk is None:
                self._desk = Desk(self.config, self._tally)
            return Asking(self._desk, requests)

    def usage(self) -> Mapping[str, float]:
        """Counts since the teacher was made.

        Beside the interface's: `waited`, seconds that the service had all calls wait; `unmetered`, calls whose tokens
        the service did not tell, counted at the most they may be; `lost`, calls that a killed process left under way:
        at most so many prompts are paid for twice.
        """
        tally = self._tally
        found: dict[str, float] = {
            "calls": tally.calls,
            "cached": tally.cached,
            "retries": tally.retries,
            "prompt_tokens": tally.read,
            "completion_tokens": tally.written,
        }
        if self.config.price is not None:
            found["cost"] = tally.money
        return {**found, "waited": tally.waited, "unmetered": tally.unmetered, "lost": tally.lost}

    async def close(self) -> None:
        """End the connections and close the cache. A second call does nothing; a request opens them again."""
        with self._lock:
            desk, self._desk = self._desk, None
        if desk is not None:
            await _there(desk.close())


async def _there(coroutine: Coroutine[Any, Any, T]) -> T:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, BACKGROUND.loop))
