"""Teachers as generators see them: text in, text out. One on token ids with its tokenizer, or an API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import LimbeckError, Problem
from limbeck.interfaces import (
    Prompt,
    Sampling,
    Teacher,
    TextCompletion,
    TextPrompt,
    TextTeacher,
    Written,
)

if TYPE_CHECKING:
    from limbeck.data import Tokenizer
    from limbeck.teachers.answers import Answers


class TeacherText:
    """Implements :class:`limbeck.interfaces.TextModel`.

    `lineage` says which teacher writes, by digests of contents, for the rows that come of it. A text that, read again,
    gives other tokens than the teacher wrote is marked `retokenized` in its own lineage: a row keeps the text only.
    `logprobs`: so many likeliest ids are told of each written token, whatever the generator's sampling says.
    """

    def __init__(self, teacher: Teacher, tokenizer: Tokenizer, logprobs: int = 0) -> None:
        self._teacher, self._tokenizer, self._logprobs = teacher, tokenizer, logprobs

    @property
    def lineage(self) -> dict[str, Any]:
        """The teacher's name and digests, JSON."""
        info = self._teacher.info()
        return {
            "name": info.name,
            "weights_digest": info.weights_digest,
            "tokenizer_digest": self._tokenizer.digest,
            "template_digest": self._tokenizer.template_digest,
        }

    async def complete(
        self, prompts: Sequence[str | list[dict[str, Any]]], sampling: Sampling, first_id: int
    ) -> AsyncGenerator[Written, None]:
        """The answers as they are ready. Prompt i is drawn as item `first_id` + i.

        Raises DATA_INVALID for a prompt that cannot be rendered, and what the teacher raises.
        """
        from limbeck.data import answer_ids

        asked = self._encoded(prompts, first_id)
        sampling = replace(sampling, logprobs=self._logprobs)
        async with aclosing(self._teacher.generate(asked, sampling)) as completions:
            async for completion in completions:
                text = self._tokenizer.decode(completion.ids)
                place = completion.item_id - first_id
                ids = answer_ids(prompts[place], text, completion.finish_reason, self._tokenizer)
                others = ids is not None and not np.array_equal(ids, completion.ids)
                lineage = {"retokenized": True} if others else {}
                yield Written(place, text, completion.finish_reason, said=completion.said, lineage=lineage)

    def _encoded(self, prompts: Sequence[str | list[dict[str, Any]]], first_id: int) -> list[Prompt]:
        asked: list[Prompt] = []
        problems: list[Problem] = []
        reason = None
        for item_id, prompt in enumerate(prompts, first_id):
            try:
                asked.append(Prompt(item_id, self._tokenizer.encode_prompt(prompt)))
            except LimbeckError as error:
                reason = error.reason
                problems += [replace(problem, field=f"item {item_id}") for problem in error.problems]
        if reason is not None:
            raise LimbeckError(reason, problems=problems)
        return asked


class ApiText:
    """Implements :class:`limbeck.interfaces.TextModel` by a teacher that is asked with text.

    Each answer goes into `answers` before it is handed on, and is taken from there when it is asked for again: a
    resumed generator asks for prompts that were answered, and no answer is paid for twice. What the service says of an
    answer stands in its lineage as `answer`. With `logprobs` it tells of that many likeliest tokens; where its tokens
    are not those of the student's `tokenizer`, nothing is `said` of an answer.
    """

    window = 4096  # an end of it is waited for, and nothing is lost by a large one

    def __init__(self, teacher: TextTeacher, answers: Answers, tokenizer: Tokenizer, logprobs: int = 0) -> None:
        self._teacher, self._answers, self._tokenizer, self._logprobs = teacher, answers, tokenizer, logprobs

    @property
    def lineage(self) -> dict[str, Any]:
        """The teacher's name, its model's, and the digest of what it depends on, JSON."""
        info = self._teacher.info()
        return {"name": info.name, "model": info.model, "digest": info.digest}

    async def complete(
        self, prompts: Sequence[str | list[dict[str, Any]]], sampling: Sampling, first_id: int
    ) -> AsyncGenerator[Written, None]:
        """The answers as they are ready, those that are known first. Raises what the teacher raises, DISK_FULL."""
        sampling = replace(sampling, logprobs=self._logprobs)
        asked = {first_id + place: TextPrompt(first_id + place, prompt) for place, prompt in enumerate(prompts)}
        known = {item_id: self._answers.get(prompt, sampling) for item_id, prompt in asked.items()}
        for item_id, answer in known.items():
            if answer is not None:
                yield self._written(answer, prompts[item_id - first_id], item_id - first_id)
        fresh = [prompt for item_id, prompt in asked.items() if known[item_id] is None]
        if not fresh:
            return
        async with aclosing(self._teacher.complete(fresh, sampling)) as answers:
            async for answer in answers:
                self._answers.add(asked[answer.item_id], sampling, answer)
                place = answer.item_id - first_id
                yield self._written(answer, prompts[place], place)

    def _written(self, answer: TextCompletion, prompt: str | list[dict[str, Any]], place: int) -> Written:
        from limbeck.data import answer_ids
        from limbeck.teachers.said import said_of_tokens

        said = None
        if self._logprobs and answer.rejected is None and answer.tokens:
            ids = answer_ids(prompt, answer.text, answer.finish_reason, self._tokenizer)
            said = None if ids is None else said_of_tokens(answer.tokens, self._tokenizer, ids, self._logprobs)
        lineage = {"answer": answer.lineage} if answer.lineage else {}
        return Written(place, answer.text, answer.finish_reason, answer.rejected, said, lineage)
