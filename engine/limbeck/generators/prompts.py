"""The generator `prompts`: a teacher's answers to the prompts of a file."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.data import Row, prompt_of, read_rows, reject_reason
from limbeck.errors import LimbeckError, Problem, Reason, counted
from limbeck.generators.config import PromptsConfig
from limbeck.interfaces import Sample, Sampling, TextModel, Written

WINDOW = 64  # prompts asked at once where the model does not say; a resumed run asks the same batches


class Prompts:
    """Implements :class:`limbeck.interfaces.Generator`. Position = place of the row in the file, from 0."""

    needs_teacher = True

    def __init__(self, config: PromptsConfig) -> None:
        self.config = config
        self.sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
        )

    @cached_property
    def rows(self) -> list[Row]:
        """The prompts. Raises DATA_INVALID with every problem of the file."""
        rows, problems = read_rows([Path(self.config.path)])
        problems += [problem for row in rows if (problem := _not_a_prompt(row)) is not None]
        if problems:
            raise LimbeckError(Reason.DATA_INVALID, problems=problems)
        return rows

    def count(self) -> int:
        """Prompts in the file. Raises DATA_INVALID."""
        return len(self.rows)

    def inputs(self) -> Sequence[str]:
        """The files that are read."""
        path = Path(self.config.path)
        return [str(file) for file in sorted(path.glob("*.jsonl"))] if path.is_dir() else [str(path)]

    async def samples(self, start: int, model: TextModel | None) -> AsyncGenerator[Sample, None]:
        """See :class:`limbeck.interfaces.Generator`.

        Raises GENERATION_FAILED where the model leaves prompts out. Faults of single prompts name their line.
        """
        assert model is not None, "needs_teacher is true"
        teacher = getattr(model, "lineage", None)
        size: int = getattr(model, "window", WINDOW)
        for first in range(start - start % size, len(self.rows), size):
            async with aclosing(self._window(first, size, model)) as answers:
                async for written in answers:
                    if first + written.place < start:
                        continue
                    yield self._sample(first + written.place, written, teacher)

    def require(self, good: int, rejected: Mapping[str, int], left: int) -> None:
        """Raise GENERATION_FAILED, with the counts, where `min_success_ratio` is out of reach."""
        needed = math.ceil(self.config.min_success_ratio * (good + left + sum(rejected.values())))
        if good + left >= needed:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()) if count)
        rest = f", {counted(left, 'prompts')} {'is' if left == 1 else 'are'} left" if left else ""
        message = f"{good} answers are usable, {reasons}{rest}; {needed} usable ones are needed"
        hint = "look at the rejected rows; use other prompts or sampling, or lower min_success_ratio"
        raise LimbeckError(
            Reason.GENERATION_FAILED,
            problems=[Problem(message, field="data.generator.min_success_ratio", hint=hint)],
        )

    async def _window(self, first: int, size: int, model: TextModel) -> AsyncGenerator[Written, None]:
        """The answers of one window, in order of place."""
        rows = self.rows[first : first + size]
        waiting: dict[int, Written] = {}
        told = 0
        try:
            prompts = [prompt_of(row) for row in rows]
            async with aclosing(model.complete(prompts, self.sampling, first)) as answers:
                async for written in answers:
                    waiting[written.place] = written
                    while told in waiting:
                        yield waiting.pop(told)
                        told += 1
        except LimbeckError as error:
            raise LimbeckError(error.reason, error.message, [self._placed(p) for p in error.problems]) from error
        if told < len(rows):
            problem = Problem(f"the teacher gave no answer to {len(rows) - told} of {len(rows)} prompts")
            raise LimbeckError(Reason.GENERATION_FAILED, problems=[problem])

    def _placed(self, problem: Problem) -> Problem:
        """A problem of `item N` with the line that N was read from."""
        match = re.fullmatch(r"item (\d+)", problem.field or "")
        if match is None or int(match[1]) >= len(self.rows):
            return problem
        row = self.rows[int(match[1])]
        return replace(
            problem, file=row.source, line=row.line, field="messages" if "messages" in row.value else "prompt"
        )

    def _sample(self, position: int, written: Written, teacher: Any) -> Sample:
        row, text = self.rows[position], written.text
        answered: dict[str, Any]
        if "messages" in row.value:
            answered = {"messages": [*_given(row.value["messages"]), {"role": "assistant", "content": text}]}
        else:
            answered = {"prompt": row.value["prompt"], "completion": text}
        lineage = {
            "generator": "prompts",
            "source": Path(row.source).name,
            "line": row.line,
            "sampling": {name: value for name, value in asdict(self.sampling).items() if name != "logprobs"},
            "teacher": teacher,
            **written.lineage,
        }
        notes: dict[str, Any] = {key: row.value[key] for key in ("id", "metadata") if key in row.value}
        value = {**answered, "finish_reason": written.finish_reason, **notes}
        return Sample(position, value, written.rejected or reject_reason(text), lineage, written.said)


def _not_a_prompt(row: Row) -> Problem | None:
    """Why a row cannot be asked, None where it can."""
    answered = row.format == "messages" and row.value["messages"][-1]["role"] == "assistant"
    if row.format in ("prompt", "messages") and not answered:
        return None
    what = "the last message is an answer" if answered else f"a row with {', '.join(row.value)} is no prompt"
    hint = "name files that hold the answers in data.path; this generator asks the teacher for them"
    return Problem(what, file=row.source, line=row.line, field="messages" if answered else None, hint=hint)


def _given(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a prompt; answers among them are context, not the teacher's, so they are not trained."""
    return [{"weight": 0, **message} if message["role"] == "assistant" else message for message in messages]
