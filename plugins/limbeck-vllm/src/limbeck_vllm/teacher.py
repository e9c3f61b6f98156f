"""The teacher `vllm`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Signal
from limbeck.teachers import folder as folders
from limbeck.teachers.requests import check_prompts, check_score
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.frames import Answer, Question, Refused
from limbeck_vllm.model import info_of, start_of
from limbeck_vllm.process import EngineProcess, Heard
from limbeck_vllm.questions import check_sampling, completion_of, prompt_question, score_question, signal_of

REST = 30.0  # seconds before an engine that has ended without one answer is tried again

Asked = TypeVar("Asked", ScoreItem, Prompt)
Given = TypeVar("Given")


class VllmTeacher:
    """Implements :class:`limbeck.interfaces.StartingTeacher`; may be used from any thread and event loop.

    The engine lives in a process of its own that starts with the first request and ends with this process, however
    this process ends. One that dies fails what it works on; the next request starts another.
    """

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._info: TeacherInfo | None = None
        self._engine: EngineProcess | None = None
        self._closed = False
        self._numbers = count(1)

    @property
    def folder(self) -> Path:
        """Where the model lies on this machine; fetched from the hub where it must be."""
        if self._folder is None:
            self._folder = folders.model_folder(self.config.model)
        return self._folder

    def info(self) -> TeacherInfo:
        """What the folders say; starts no engine. Raises MODEL_INVALID."""
        if self._info is None:
            self._info = info_of(self.config, self.folder)
        return self._info

    async def start(self, told: Callable[[str], object]) -> None:
        """See :class:`limbeck.interfaces.StartingTeacher`."""
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(None, self._begun)
        if not engine.ready.done():
            phases: asyncio.Queue[str | None] = asyncio.Queue()
            engine.watch(_into(loop, phases))
            engine.ready.add_done_callback(lambda _: _into(loop, phases)(None))
            while (phase := await phases.get()) is not None:
                told(phase)
        await self._running()

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`.

        Raises CAPABILITY_MISSING, SCORING_FAILED, MODEL_INVALID, TEACHER_UNAVAILABLE.
        """
        check_score(self.info(), items, want)
        return self._stream(
            items,
            lambda item, number: score_question(item, want, number),
            lambda item, answer: (item.item_id, signal_of(item, want, answer)),
            Reason.SCORING_FAILED,
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`.

        Raises CAPABILITY_MISSING, GENERATION_FAILED, MODEL_INVALID, TEACHER_UNAVAILABLE.
        """
        info = self.info()
        check_prompts(info, prompts, sampling)
        check_sampling(sampling)
        return self._stream(
            prompts,
            lambda prompt, number: prompt_question(prompt, sampling, info.eos_ids, number),
            lambda prompt, answer: completion_of(prompt, info.eos_ids, answer),
            Reason.GENERATION_FAILED,
        )

    async def close(self) -> None:
        """End the engine and wait until none of its processes is left."""
        with self._lock:
            self._closed = True
            engine = self._engine
        if engine is not None:
            await asyncio.get_running_loop().run_in_executor(None, engine.end)

    async def _stream(
        self,
        asked: Sequence[Asked],
        question: Callable[[Asked, int], Question],
        given: Callable[[Asked, Answer], Given],
        reason: Reason,
    ) -> AsyncGenerator[Given, None]:
        """Ask up to `concurrency` at once: vLLM takes them in the order of their coming, so that calls share it."""
        if not asked:
            return
        engine = await self._running()
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        hear = _into(asyncio.get_running_loop(), heard)
        under_way: dict[int, Asked] = {}
        left: Iterator[Asked] = iter(asked)
        try:
            while True:
                while len(under_way) < self.config.concurrency and (one := next(left, None)) is not None:
                    number = next(self._numbers)
                    under_way[number] = one
                    engine.ask(question(one, number), hear)
                if not under_way:
                    return
                message = await heard.get()
                if isinstance(message, LimbeckError):
                    raise LimbeckError(message.reason, message.message, message.problems)
                one = under_way.pop(message.number)
                if isinstance(message, Refused):
                    problem = Problem(f"vLLM refuses it: {message.words}", field=f"item {one.item_id}")
                    raise LimbeckError(reason, problems=[problem])
                yield given(one, message)
        finally:
            engine.abort(tuple(under_way))

    async def _running(self) -> EngineProcess:
        """The engine, started where there is none. Raises MODEL_INVALID, TEACHER_UNAVAILABLE."""
        engine = await asyncio.get_running_loop().run_in_executor(None, self._begun)
        try:
            await asyncio.wrap_future(engine.ready)
        except LimbeckError as error:  # of all who wait, each raises its own
            raise LimbeckError(error.reason, error.message, error.problems) from None
        return engine

    def _begun(self) -> EngineProcess:
        """The engine that lives or starts. One that ended is replaced, but not in a tight loop."""
        start = start_of(self.config, self.folder)
        with self._lock:
            if self._closed:
                raise LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[Problem("the teacher was closed")])
            old = self._engine
            if old is not None and old.error is None:
                return old
            if old is not None and old.error is not None and not old.answered and time.monotonic() < old.rested(REST):
                raise LimbeckError(old.error.reason, old.error.message, old.error.problems)
            try:
                self._engine = EngineProcess(start)
            except OSError as error:
                problem = Problem(f"no process for vLLM's engine can be started: {error}")
                raise LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[problem]) from error
            return self._engine


def _into(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any]) -> Callable[[Any], None]:
    """Puts into a queue of a loop from any thread; lost where the loop has ended."""

    def put(message: Any) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, message)

    return put
