"""Conformance of a teacher asked with text. Subclass, give a fixture `teacher`, and pytest runs the suite on it.

Example::

    class TestMine(TextTeacherConformance):
        @pytest.fixture
        def teacher(self):
            return MyTeacher(MyConfig(...))  # against a local server that costs nothing
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, TypeVar

import pytest

from limbeck.errors import LimbeckError
from limbeck.interfaces import (
    CAPABILITIES,
    Sampling,
    Teacher,
    TextCompletion,
    TextPrompt,
    TextTeacher,
    TextTeacherInfo,
)

T = TypeVar("T")
COUNTED = ("calls", "cached", "retries", "prompt_tokens", "completion_tokens")


def ask(question: Coroutine[Any, Any, T]) -> T:
    """Run one question to a teacher on an event loop of its own."""
    return asyncio.run(question)


async def answers(
    teacher: TextTeacher, prompts: Sequence[TextPrompt], sampling: Sampling | None = None
) -> dict[int, TextCompletion]:
    """Every answer of `teacher` by item id; a prompt that is answered twice is an error."""
    found: dict[int, TextCompletion] = {}
    async with aclosing(teacher.complete(prompts, sampling or Sampling())) as given:
        async for answer in given:
            assert answer.item_id not in found, f"item {answer.item_id} was answered twice"
            found[answer.item_id] = answer
    return found


class ScriptedTextTeacher:
    """A teacher that answers from a script, item i with `script[i % len]`; the last prompt is answered first.

    A text is a good answer; a :class:`TextCompletion` is given as it is, but for its item; an error is raised in place
    of the answer, once: asked again, the item gets `after`. `asked` lists the items that were paid for, in order.
    """

    def __init__(
        self,
        *script: str | TextCompletion | LimbeckError,
        price: tuple[float, float] | None = (1.0, 2.0),
        max_logprobs: int = 0,
        after: str = "an answer at last",
    ) -> None:
        self.script, self.after = script, after
        self.asked: list[int] = []
        self.sampling: Sampling | None = None
        self.closed = 0
        can = {"generate", "generate_top_k"} if max_logprobs else {"generate"}
        self._info = TextTeacherInfo("scripted", "script-1", "0" * 64, frozenset(can), max_logprobs, price)
        self._raised: set[int] = set()
        self._usage = dict.fromkeys(COUNTED, 0.0)

    def info(self) -> TextTeacherInfo:
        """See :class:`limbeck.interfaces.TextTeacher`."""
        return self._info

    async def complete(self, prompts: Sequence[TextPrompt], sampling: Sampling) -> AsyncGenerator[TextCompletion, None]:
        """See :class:`limbeck.interfaces.TextTeacher`. Each answer reads 10 tokens and writes 5."""
        self.sampling = sampling
        for prompt in reversed(prompts):
            said = self.script[prompt.item_id % len(self.script)]
            if isinstance(said, LimbeckError):
                if prompt.item_id not in self._raised:
                    self._raised.add(prompt.item_id)
                    raise said
                said = self.after
            self.asked.append(prompt.item_id)
            self._usage["calls"] += 1
            self._usage["prompt_tokens"] += 10
            self._usage["completion_tokens"] += 5
            if isinstance(said, str):
                usage = {"model": "script-1", "prompt_tokens": 10, "completion_tokens": 5}
                said = TextCompletion(prompt.item_id, said, "stop", lineage=usage)
            yield replace(said, item_id=prompt.item_id)
            await asyncio.sleep(0)

    def usage(self) -> Mapping[str, float]:
        """See :class:`limbeck.interfaces.TextTeacher`."""
        if self._info.price is None:
            return dict(self._usage)
        read, written = self._info.price
        cost = (read * self._usage["prompt_tokens"] + written * self._usage["completion_tokens"]) / 1e6
        return {**self._usage, "cost": cost}

    async def close(self) -> None:
        """Counts how often it was closed."""
        self.closed += 1


class TextTeacherConformance:
    """The rules of :class:`limbeck.interfaces.TextTeacher`."""

    @pytest.fixture
    def teacher(self) -> TextTeacher:
        """The teacher under test."""
        raise NotImplementedError("give a fixture `teacher`")

    @pytest.fixture
    def prompts(self) -> list[TextPrompt]:
        """A text, chat messages, and one with characters of several bytes."""
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]
        return [TextPrompt(20, "The river Po rises in"), TextPrompt(21, chat), TextPrompt(22, "Où coule la Seine ?")]

    def test_it_is_a_teacher_asked_with_text_and_no_other(self, teacher: TextTeacher) -> None:
        assert isinstance(teacher, TextTeacher)
        assert not isinstance(teacher, Teacher)

    def test_info_is_complete_and_json(self, teacher: TextTeacher) -> None:
        info = teacher.info()
        assert info == teacher.info()
        assert info.name
        assert info.model
        assert len(info.digest) == 64
        assert {"generate"} <= info.capabilities <= set(CAPABILITIES)
        assert ("generate_top_k" in info.capabilities) == (info.max_logprobs > 0)
        json.dumps(asdict(info) | {"capabilities": sorted(info.capabilities)})

    def test_every_prompt_is_answered_once(self, teacher: TextTeacher, prompts: list[TextPrompt]) -> None:
        found = ask(answers(teacher, prompts))
        assert set(found) == {prompt.item_id for prompt in prompts}
        for answer in found.values():
            assert answer.finish_reason in ("stop", "length")
            assert answer.text or answer.rejected
            answer.text.encode()
            assert json.loads(json.dumps(answer.lineage)) == answer.lineage

    def test_a_request_for_nothing_yields_nothing_and_costs_nothing(self, teacher: TextTeacher) -> None:
        before = dict(teacher.usage())
        assert ask(answers(teacher, [])) == {}
        assert dict(teacher.usage()) == before

    def test_usage_counts_calls_tokens_and_cost(self, teacher: TextTeacher, prompts: list[TextPrompt]) -> None:
        before = dict(teacher.usage())
        ask(answers(teacher, prompts))
        after = dict(teacher.usage())
        assert set(COUNTED) <= set(before)
        assert all(after[name] >= before[name] for name in before)
        assert after["calls"] + after["cached"] >= before["calls"] + before["cached"] + len(prompts)
        if teacher.info().price is not None:
            read, written = teacher.info().price or (0, 0)
            most = (read * after["prompt_tokens"] + written * after["completion_tokens"]) / 1e6
            assert 0 <= after["cost"] <= most * (1 + 1e-9)  # less where a cached answer counts its tokens
        else:
            assert "cost" not in after

    def test_tokens_make_the_text_where_they_are_told(self, teacher: TextTeacher, prompts: list[TextPrompt]) -> None:
        if "generate_top_k" not in teacher.info().capabilities:
            pytest.skip("the teacher tells nothing of its tokens")
        for answer in ask(answers(teacher, prompts, Sampling(logprobs=2))).values():
            assert answer.tokens is not None
            assert b"".join(token.text for token in answer.tokens).decode() == answer.text
            for token in answer.tokens:
                assert len(token.top) <= 2
                assert all(logprob <= 1e-3 for _, logprob in token.top)
                assert len({text for text, _ in token.top}) == len(token.top)
        assert all(answer.tokens is None for answer in ask(answers(teacher, prompts)).values())

    def test_closing_the_iterator_stops_and_leaves_the_teacher_usable(
        self, teacher: TextTeacher, prompts: list[TextPrompt]
    ) -> None:
        async def first_and_all() -> tuple[int, dict[int, TextCompletion]]:
            first = -1
            async with aclosing(teacher.complete(prompts, Sampling())) as given:
                async for answer in given:
                    first = answer.item_id
                    break
            return first, await answers(teacher, prompts)

        first, found = ask(first_and_all())
        assert first in found
        assert len(found) == len(prompts)

    def test_closing_twice_does_nothing(self, teacher: TextTeacher) -> None:
        async def twice() -> None:
            await teacher.close()
            await teacher.close()

        ask(twice())
