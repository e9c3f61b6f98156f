"""The teacher `echo` behind Limbeck's interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from limbeck.data import Tokenizer
from limbeck.files import digest
from limbeck.interfaces import CAPABILITIES, Completion, Prompt, Said, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK
from limbeck.teachers.draws import tally, uniforms
from limbeck.teachers.folder import model_folder
from limbeck.teachers.requests import check_prompts, check_score
from limbeck_echo import numbers
from limbeck_echo.config import EchoConfig


class EchoTeacher:
    """Implements :class:`limbeck.interfaces.Teacher`. Items are answered one by one, in the order asked."""

    def __init__(self, config: EchoConfig) -> None:
        self.config = config

    @cached_property
    def _info(self) -> TeacherInfo:
        tokenizer = Tokenizer.load(model_folder(self.config.tokenizer))
        vocab_size = self.config.vocab_size or tokenizer.vocab_size
        return TeacherInfo(
            name="echo",
            vocab_size=vocab_size,
            tokenizer_digest=tokenizer.digest,
            template_digest=tokenizer.template_digest,
            weights_digest=digest(["echo", numbers.VERSION, self.config.seed, vocab_size]),
            max_length=self.config.max_length,
            capabilities=frozenset(CAPABILITIES) - {"hidden_states"},
            eos_ids=tokenizer.eos_ids,
            bos_id=tokenizer.bos_id,
        )

    def info(self) -> TeacherInfo:
        """What it is. Raises MODEL_INVALID where the tokenizer cannot be read."""
        return self._info

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, SCORING_FAILED."""
        check_score(self.info(), items, want)
        return self._score(items, want)

    async def _score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]:
        for item in items:
            yield item.item_id, self._signal(item, want)
            await asyncio.sleep(0)  # let others run

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """See :class:`limbeck.interfaces.Teacher`. Raises CAPABILITY_MISSING, GENERATION_FAILED."""
        check_prompts(self.info(), prompts, sampling)
        return self._generate(prompts, sampling)

    async def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        for prompt in prompts:
            yield self._completion(prompt, sampling)
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing is held."""

    def _logits(self, ids: npt.NDArray[np.integer], rows: range) -> numbers.Logits:
        state = numbers.states(ids, self.config.seed)
        return numbers.logits(ids, rows, state, self._info.vocab_size, self._info.eos_ids)

    def _signal(self, item: ScoreItem, want: Want) -> Signal:
        rows = np.arange(item.n)
        logits = self._logits(item.ids, range(item.first_row, item.first_row + item.n))
        logprobs = numbers.log_softmax(logits)
        target = None
        if want.target:
            target = logprobs[rows, item.ids[rows + item.first_row + 1]].astype(np.float32)
        return Signal(
            first_row=item.first_row,
            n=item.n,
            top_k=_top_k(logits, logprobs, want) if want.top_k else None,
            target=target,
            token_ids=_asked(logprobs, item) if want.token_ids else None,
            samples=_samples(logprobs, item, want.samples) if want.samples else None,
            full=logprobs.astype(np.float32) if want.full else None,
        )

    def _completion(self, prompt: Prompt, sampling: Sampling) -> Completion:
        ids = prompt.ids.tolist()
        drawn = uniforms(sampling.seed, prompt.item_id, (sampling.max_new_tokens,))
        for step in range(sampling.max_new_tokens):
            logits = self._logits(np.array(ids), range(len(ids) - 1, len(ids)))[0]
            chosen = _choose(logits, sampling, float(drawn[step]))
            ids.append(chosen)
            if chosen in self._info.eos_ids:
                break
        written = np.array(ids[len(prompt.ids) :], np.int32)
        said = self._said(prompt, written, sampling.logprobs) if sampling.logprobs else None
        if written[-1] in self._info.eos_ids:
            return Completion(prompt.item_id, written[:-1], "stop", said)
        return Completion(prompt.item_id, written, "length", said)

    def _said(self, prompt: Prompt, written: npt.NDArray[np.int32], k: int) -> Said:
        """The rows of the written tokens, as `score` gives them."""
        ids = np.concatenate([prompt.ids, written]).astype(np.int32)
        rows = ScoreItem(prompt.item_id, ids, len(prompt.ids) - 1, len(written))
        signal = self._signal(rows, Want(top_k=k, temperatures=(1.0,), target=True))
        assert signal.top_k is not None
        return Said(written, signal.top_k, signal.target)


def _top_k(logits: numbers.Logits, logprobs: numbers.Logits, want: Want) -> TopK:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : want.top_k]
    rest = np.ones(logits.shape, dtype=bool)
    np.put_along_axis(rest, ids, False, axis=1)
    tails = [
        # never 1 − Σ: on a peaked row that is rounding error
        np.logaddexp.reduce(np.where(rest, numbers.log_softmax(logits / temperature), -np.inf), axis=1)
        for temperature in want.temperatures
    ]
    best = np.take_along_axis(logprobs, ids, axis=1)
    return TopK.from_logprobs(ids, best, np.stack(tails, axis=1), want.temperatures)


def _asked(logprobs: numbers.Logits, item: ScoreItem) -> TokenLogprobs:
    assert item.token_ids is not None  # by check_score
    if item.offsets is None:
        found = np.take_along_axis(logprobs, item.token_ids.astype(np.int64), axis=1)
    else:
        found = logprobs[np.repeat(np.arange(item.n), np.diff(item.offsets)), item.token_ids]
    return TokenLogprobs(item.token_ids, found.astype(np.float32), item.offsets)


def _samples(logprobs: numbers.Logits, item: ScoreItem, count: int) -> Samples:
    mass = np.exp(logprobs).cumsum(axis=1)
    points = uniforms(item.seed, item.item_id, (item.n, count)) * mass[:, -1:]
    drawn = np.stack([np.searchsorted(row, at, side="right") for row, at in zip(mass, points, strict=True)])
    drawn = np.minimum(drawn, logprobs.shape[1] - 1)
    return tally(drawn, np.take_along_axis(logprobs, drawn, axis=1))


def _choose(logits: numbers.Logits, sampling: Sampling, at: float) -> int:
    """The next id: greedy, or temperature, top_k and top_p in turn."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or len(logits)]
    mass = np.exp(numbers.log_softmax(logits[order] / sampling.temperature)).cumsum()
    kept = mass[: int(np.searchsorted(mass, sampling.top_p)) + 1] if sampling.top_p < 1 else mass
    return int(order[min(int(np.searchsorted(kept, at * kept[-1], side="right")), len(kept) - 1)])
