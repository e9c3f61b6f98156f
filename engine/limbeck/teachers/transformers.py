"""The teacher `transformers`: any Hugging Face causal language model, on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import (
    CAPABILITIES,
    Completion,
    Prompt,
    Sampling,
    ScoreItem,
    TeacherInfo,
    Want,
)
from limbeck.signals import Signal
from limbeck.signals.head import OutputHead
from limbeck.teachers import folder as folders
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.generation import generate
from limbeck.teachers.model import LoadedModel
from limbeck.teachers.requests import check_prompts, check_score
from limbeck.teachers.scoring import score

Answer = TypeVar("Answer")


class TransformersTeacher:
    """Implements :class:`limbeck.interfaces.HeadTeacher`. The weights are loaded at the first request.

    All of torch's work runs in one thread of the teacher's own, a step at a time: the event loop stays free, and two
    requests at once take turns.
    """

    def __init__(self, config: TransformersConfig) -> None:
        self.config = config
        self._folder: Path | None = None
        self._info: TeacherInfo | None = None
        self._model: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbeck-teacher")

    @property
    def folder(self) -> Path:
        """Where the model lies on this machine; fetched from the hub where it must be."""
        if self._folder is None:
            self._folder = folders.model_folder(self.config.model)
        return self._folder

    def info(self) -> TeacherInfo:
        """What the folder says; reads no weights but for their digest, once. Raises MODEL_INVALID."""
        if self._info is None:
            from limbeck.data import Tokenizer

            config = folders.text_config(self.folder)
            tokenizer = Tokenizer.load(self.folder)
            self._info = TeacherInfo(
                name="transformers",
                vocab_size=int(config.vocab_size),
                tokenizer_digest=tokenizer.digest,
                template_digest=tokenizer.template_digest,
                weights_digest=folders.weights_digest(self.folder),
                max_length=folders.max_length(config),
                capabilities=frozenset(CAPABILITIES) - {"generate_top_k"},
                eos_ids=tuple(sorted({*folders.eos_ids(self.folder), *tokenizer.eos_ids})),
                bos_id=tokenizer.bos_id,
                hidden_size=int(config.hidden_size),
                num_layers=int(config.num_hidden_layers),
                parameters=folders.parameters(self.folder),
            )
        return self._info

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, SCORING_FAILED, MODEL_INVALID."""
        check_score(self.info(), items, want)
        budget = self.config.batch_tokens
        return self._stream(len(items), Reason.SCORING_FAILED, lambda model: score(model, items, want, budget))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, GENERATION_FAILED, MODEL_INVALID."""
        info = self.info()
        check_prompts(info, prompts, sampling)
        budget = self.config.batch_tokens
        return self._stream(
            len(prompts),
            Reason.GENERATION_FAILED,
            lambda model: generate(model, prompts, sampling, info.eos_ids, budget),
        )

    async def output_head(self) -> OutputHead:
        """See :class:`limbeck.interfaces.HeadTeacher`. Raises MODEL_INVALID."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._load().output_head())

    async def close(self) -> None:
        """Let go of the weights and the thread, after the step it is in."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._model = None

    async def _stream(
        self, count: int, reason: Reason, start: Callable[[LoadedModel], Iterator[list[Answer]]]
    ) -> AsyncGenerator[Answer, None]:
        if not count:
            return
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._thread, self._load)
        steps = start(model)
        while True:
            answers = await loop.run_in_executor(self._thread, _next, steps, reason)
            if answers is None:
                return
            for answer in answers:
                yield answer

    def _load(self) -> LoadedModel:
        if self._model is None:
            model = LoadedModel.load(self.folder, self.config)
            said = self.info().vocab_size
            if model.vocab_size != said:
                message = f"the head has {model.vocab_size:,} rows, config.json says vocab_size {said:,}"
                raise LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, file=str(self.folder))])
            self._model = model
        return self._model


@torch.inference_mode()
def _next(steps: Iterator[list[Answer]], reason: Reason) -> list[Answer] | None:
    """The next answers, None at the end. What torch raises becomes `reason`."""
    try:
        return next(steps, None)
    except (RuntimeError, MemoryError, ValueError, IndexError) as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = None
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in first_line:
            first_line, hint = f"out of memory: {first_line}", "lower the teacher's batch_tokens"
        raise LimbeckError(reason, problems=[Problem(first_line, hint=hint)]) from error
