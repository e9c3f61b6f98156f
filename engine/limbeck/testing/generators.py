"""Conformance of a generator. Subclass, give a fixture `generator`, and pytest runs the whole suite on it.

Example::

    class TestMine(GeneratorConformance):
        @pytest.fixture
        def generator(self, tmp_path):
            return MyGenerator(MyConfig(...))
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest

from limbeck.data import read_rows
from limbeck.interfaces import Generator, Sample, Sampling, TextModel, Written


class ScriptedModel:
    """A text model that answers from a list, prompt i of all with `answers[i % len]`. Counts what it was asked."""

    def __init__(self, answers: Sequence[str], finish_reason: Literal["stop", "length"] = "stop") -> None:
        self.answers, self.finish_reason = answers, finish_reason
        self.asked: list[int] = []
        self.sampling: Sampling | None = None

    async def complete(
        self, prompts: Sequence[str | list[dict[str, Any]]], sampling: Sampling, first_id: int
    ) -> AsyncGenerator[Written, None]:
        """See :class:`limbeck.interfaces.TextModel`; the last prompt is answered first."""
        self.sampling = sampling
        for place in reversed(range(len(prompts))):
            self.asked.append(first_id + place)
            yield Written(place, self.answers[(first_id + place) % len(self.answers)], self.finish_reason)
            await asyncio.sleep(0)


async def samples(generator: Generator, start: int, model: TextModel | None) -> list[Sample]:
    """Every sample of `generator` from `start` on."""
    async with aclosing(generator.samples(start, model)) as found:
        return [sample async for sample in found]


class GeneratorConformance:
    """The rules of :class:`limbeck.interfaces.Generator`."""

    @pytest.fixture
    def generator(self) -> Generator:
        """The generator under test, with at least two samples to give."""
        raise NotImplementedError("give a fixture `generator`")

    @pytest.fixture
    def model(self, generator: Generator) -> TextModel | None:
        """What the generator asks; none where it needs none."""
        return ScriptedModel(["first answer", "second", "third one"]) if generator.needs_teacher else None

    def test_samples_come_in_order_without_gaps(self, generator: Generator, model: TextModel | None) -> None:
        found = asyncio.run(samples(generator, 0, model))
        assert [sample.position for sample in found] == list(range(len(found)))
        assert len(found) >= 2
        assert generator.count() in (None, len(found))

    def test_it_goes_on_from_any_position(self, generator: Generator, model: TextModel | None) -> None:
        found = asyncio.run(samples(generator, 0, model))
        for start in range(len(found) + 1):
            assert asyncio.run(samples(generator, start, model)) == found[start:]

    def test_rows_are_of_a_known_format_with_lineage(
        self, generator: Generator, model: TextModel | None, tmp_path: Path
    ) -> None:
        found = asyncio.run(samples(generator, 0, model))
        lines = [json.dumps({**s.row, "lineage": s.lineage}) for s in found if s.rejected is None]
        file = tmp_path / "conformance.jsonl"
        file.write_text("\n".join(lines) + "\n")
        rows, problems = read_rows([file])
        assert problems == []
        assert len(rows) == len(lines)
        assert all(sample.lineage for sample in found)

    def test_inputs_are_files_that_exist(self, generator: Generator) -> None:
        assert all(Path(path).is_file() for path in generator.inputs())

    def test_closing_stops_it(self, generator: Generator, model: TextModel | None) -> None:
        async def first() -> Sample:
            async with aclosing(generator.samples(0, model)) as found:
                async for sample in found:
                    return sample
            raise AssertionError("no sample came")

        assert asyncio.run(first()).position == 0
