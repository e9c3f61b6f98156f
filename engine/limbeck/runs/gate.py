"""The smoke gate: the first answers of a teacher that is paid for must pass the recipe's checks before the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason, counted
from limbeck.interfaces import Generator, Sampling, Written

if TYPE_CHECKING:
    from limbeck.data import Prepared, Tokenizer
    from limbeck.recipe import DataSpec
    from limbeck.teachers.text import ApiText

_ITEM = "item {}"  # a generator knows which prompt this is, and puts its file and line there


class SmokeGate:
    """Implements :class:`limbeck.interfaces.TextModel` around another: the first `data.smoke_rows` prompts are asked,
    and nothing more before their answers have passed. No generator needs to know.

    Answers that were kept pass here again: a recipe that was mended goes on without paying for them twice, one that was
    not fails again without a call. With `logprobs`, something must have been said of the answers' tokens.
    """

    def __init__(
        self,
        model: ApiText,
        generator: Generator,
        spec: DataSpec,
        tokenizer: Tokenizer,
        spent: Callable[[], str],
        logprobs: int = 0,
    ) -> None:
        self._model, self._generator, self._spec, self._tokenizer = model, generator, spec, tokenizer
        self._spent, self._logprobs = spent, logprobs
        self._seen: dict[int, tuple[str | list[dict[str, Any]], Written]] = {}
        self._asked = 0
        self._passed = spec.smoke_rows == 0

    @property
    def lineage(self) -> Any:
        """That of the model."""
        return self._model.lineage

    @property
    def window(self) -> int:
        """That of the model."""
        return self._model.window

    async def complete(
        self, prompts: Sequence[str | list[dict[str, Any]]], sampling: Sampling, first_id: int
    ) -> AsyncGenerator[Written, None]:
        """See :class:`limbeck.interfaces.TextModel`. Raises GENERATION_FAILED where the first answers do not pass."""
        count = 0 if self._passed else min(len(prompts), self._spec.smoke_rows - self._asked)
        self._asked += count
        if count:
            async with aclosing(self._model.complete(prompts[:count], sampling, first_id)) as answers:
                async for written in answers:
                    self._seen[first_id + written.place] = (prompts[written.place], written)
                    yield written
        if not self._passed and self._asked == self._spec.smoke_rows:
            self._check()
            self._passed = True
            self._seen.clear()
        if count == len(prompts):
            return
        async with aclosing(self._model.complete(prompts[count:], sampling, first_id + count)) as answers:
            async for written in answers:
                yield replace(written, place=written.place + count)

    def _check(self) -> None:
        """Raise GENERATION_FAILED with every answer that would not be trained, and why."""
        refused = {item: self._refused(item) for item in sorted(self._seen)}
        untrained = {item: self._fault(item) for item, problem in refused.items() if problem is None}
        bad = [problem for problem in (refused | untrained).values() if problem is not None]
        if self._spec.on_bad_row == "error" and any(untrained.values()):
            raise self._failed(bad)
        good = [item for item, problem in untrained.items() if problem is None]
        try:
            self._generator.require(len(good), Counter(reason_of(problem.message) for problem in bad), 0)
        except LimbeckError as error:
            raise self._failed([*error.problems, *bad]) from error
        if self._logprobs and good and all(self._seen[item][1].said is None for item in good):
            what = "no answer's tokens are those that the student reads: losses on them would train nothing"
            hint = "take a student of the teacher's family, or train on its text: {plugin: cross_entropy}"
            raise self._failed([Problem(what, field="student", hint=hint)])
        if good and all(self._is_cut(item) for item in good):
            hint = "raise the generator's max_new_tokens or data.max_length; data.smoke_rows: 0 takes cut answers only"
            raise self._failed([Problem("every usable answer is cut, so that none shows how a text ends", hint=hint)])

    def _failed(self, problems: list[Problem]) -> LimbeckError:
        message = (
            f"The first {counted(len(self._seen), 'answers')} do not pass the recipe's checks, and no more was asked. "
            f"So far: {self._spent()}. Mend the recipe and give the same command again: no answer is paid for twice."
        )
        return LimbeckError(Reason.GENERATION_FAILED, message, problems)

    def _refused(self, item: int) -> Problem | None:
        """Why the teacher's side says that an answer must not be trained; None for a good one."""
        from limbeck.data import reject_reason

        written = self._seen[item][1]
        reason = written.rejected or reject_reason(written.text)
        return Problem(reason, field=_ITEM.format(item)) if reason else None

    def _fault(self, item: int) -> Problem | None:
        """Why an answer could not be trained by the rules of the recipe; None where it could."""
        try:
            self._prepared(item)
        except LimbeckError as error:
            problem = error.problems[0] if error.problems else Problem(error.message)
            return Problem(problem.message, field=_ITEM.format(item), hint=problem.hint)
        return None

    def _is_cut(self, item: int) -> bool:
        return self._seen[item][1].finish_reason == "length" or self._prepared(item).figures["truncated"] > 0

    def _prepared(self, item: int) -> Prepared:
        from limbeck.data import Row, prepare

        prompt, written = self._seen[item]
        value = {"prompt": prompt, "completion": written.text, "finish_reason": written.finish_reason}
        spec = self._spec.model_copy(update={"holdout": 0})
        return prepare([Row("", item, value, "completion")], [], self._tokenizer, spec)


def reason_of(rejected: str) -> str:
    """The words of a count: those before the colon of `failed: 500 Internal Server Error`."""
    return rejected.partition(":")[0]
