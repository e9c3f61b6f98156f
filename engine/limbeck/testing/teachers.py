"""Conformance of a teacher. Subclass, give a fixture `teacher`, and pytest runs the whole suite on it.

Example::

    class TestMine(TeacherConformance):
        @pytest.fixture
        def teacher(self):
            return MyTeacher(MyConfig(...))  # or a session's fixture, where making one is slow
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import CAPABILITIES, Completion, HeadTeacher, Prompt, Sampling, ScoreItem, Teacher, Want
from limbeck.signals import Signal

T = TypeVar("T")
CODE_STEP = 1 / 2048  # of a stored log-probability above −16


def ask(question: Coroutine[Any, Any, T]) -> T:
    """Run one question to a teacher on an event loop of its own."""
    return asyncio.run(question)


async def scores(teacher: Teacher, items: Sequence[ScoreItem], want: Want) -> dict[int, Signal]:
    """Every answer of `teacher` by item id; an item that is answered twice is an error."""
    found: dict[int, Signal] = {}
    async with aclosing(teacher.score(items, want)) as answers:
        async for item_id, signal in answers:
            assert item_id not in found, f"item {item_id} was answered twice"
            found[item_id] = signal
    return found


async def completions(teacher: Teacher, prompts: Sequence[Prompt], sampling: Sampling) -> dict[int, Completion]:
    """Every continuation of `teacher` by item id; a prompt that is answered twice is an error."""
    found: dict[int, Completion] = {}
    async with aclosing(teacher.generate(prompts, sampling)) as answers:
        async for answer in answers:
            assert answer.item_id not in found, f"item {answer.item_id} was answered twice"
            found[answer.item_id] = answer
    return found


class TeacherConformance:
    """The rules of :class:`limbeck.interfaces.Teacher`; what a teacher cannot do is skipped where it says so."""

    tolerance = 1e-4  # of log-probabilities between batches

    @pytest.fixture
    def teacher(self) -> Teacher:
        """The teacher under test."""
        raise NotImplementedError("give a fixture `teacher`")

    @pytest.fixture
    def items(self, teacher: Teacher) -> list[ScoreItem]:
        """Three sequences of different lengths, each scored from its own row on."""
        return [
            ScoreItem(item_id, _ids(teacher, length, item_id), first, length - 1 - first, seed=7)
            for item_id, length, first in ((10, 9, 0), (11, 23, 5), (12, 4, 2))
        ]

    @pytest.fixture
    def prompts(self, teacher: Teacher) -> list[Prompt]:
        """Three prompts of different lengths."""
        return [Prompt(item_id, _ids(teacher, length, item_id)) for item_id, length in ((20, 3), (21, 11), (22, 6))]

    def test_info_is_complete_and_json(self, teacher: Teacher) -> None:
        info = teacher.info()
        assert info == teacher.info()
        assert info.capabilities <= set(CAPABILITIES)
        assert info.capabilities
        assert "generate" in info.capabilities or "generate_top_k" not in info.capabilities
        assert info.vocab_size > max(info.eos_ids)
        assert info.max_length > 0
        assert all(len(value) == 64 for value in (info.tokenizer_digest, info.weights_digest))
        json.dumps(asdict(info) | {"capabilities": sorted(info.capabilities)})

    def test_every_item_is_answered_once_for_its_rows(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        found = ask(scores(teacher, items, self._want(teacher)))
        assert {i: (s.first_row, s.n) for i, s in found.items()} == {i.item_id: (i.first_row, i.n) for i in items}

    def test_a_request_for_nothing_yields_nothing(self, teacher: Teacher) -> None:
        assert ask(scores(teacher, [], self._want(teacher))) == {}
        if "generate" in teacher.info().capabilities:
            assert ask(completions(teacher, [], Sampling())) == {}

    def test_top_k_and_tails_hold_all_mass_at_each_temperature(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "top_k")
        temperatures = teacher.info().temperatures or (0.5, 1.0, 3.0)
        for signal in ask(scores(teacher, items, Want(top_k=4, temperatures=temperatures))).values():
            assert signal.top_k is not None
            assert signal.top_k.temperatures == temperatures
            for temperature in temperatures:
                ids, logprobs, tail = signal.top_k.at(temperature)
                assert ids.shape == (signal.n, 4)
                assert (np.diff(logprobs, axis=1) <= 0).all()
                np.testing.assert_allclose(np.exp(logprobs).sum(1) + np.exp(tail), 1.0, atol=1e-9)

    def test_top_k_and_tails_are_those_of_the_full_distribution(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "top_k", "full")
        temperatures = teacher.info().temperatures or (1.0, 2.0)
        found = ask(scores(teacher, items, Want(top_k=4, temperatures=temperatures, full=True)))
        for signal in found.values():
            assert signal.top_k is not None
            assert signal.full is not None
            full = signal.full.astype(np.float64)
            assert full.shape == (signal.n, teacher.info().vocab_size)
            np.testing.assert_allclose(np.exp(full).sum(1), 1.0, atol=1e-4)
            for column, temperature in enumerate(temperatures):
                scaled = full / temperature - np.logaddexp.reduce(full / temperature, axis=1)[:, None]
                ids, logprobs, _ = signal.top_k.at(temperature)
                expected = np.take_along_axis(scaled, ids.astype(np.int64), axis=1)
                np.testing.assert_allclose(logprobs, expected, atol=2 * CODE_STEP)
                np.put_along_axis(scaled, ids.astype(np.int64), -np.inf, axis=1)
                outside = np.logaddexp.reduce(scaled, axis=1)
                np.testing.assert_allclose(signal.top_k.tails[:, column], outside, atol=1e-3)

    def test_the_target_is_the_next_token(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "target", "full")
        found = ask(scores(teacher, items, Want(target=True, full=True)))
        for item in items:
            signal = found[item.item_id]
            assert signal.full is not None
            following = item.ids[item.first_row + 1 : item.first_row + item.n + 1]
            assert signal.target is not None
            np.testing.assert_allclose(signal.target, signal.full[np.arange(item.n), following], atol=self.tolerance)

    def test_a_row_reads_no_token_behind_it(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "top_k")
        want = Want(top_k=4)
        whole = ask(scores(teacher, items, want))
        for item in items:
            cut = ScoreItem(item.item_id, item.ids[: item.first_row + 2], item.first_row, 1, seed=item.seed)
            self._same(ask(scores(teacher, [cut], want))[item.item_id], whole[item.item_id], rows=1)

    def test_a_batch_changes_no_number(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        want = self._want(teacher)
        together = ask(scores(teacher, items, want))
        for item in items:
            self._same(ask(scores(teacher, [item], want))[item.item_id], together[item.item_id], rows=item.n)

    def test_token_ids_are_answered_in_the_asked_order(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "token_ids", "full")
        rng = np.random.default_rng(0)
        asked = []
        for place, item in enumerate(items):
            lengths = rng.integers(0, 5, item.n)  # CSR, with empty rows
            shape = (item.n, 3) if place % 2 == 0 else (int(lengths.sum()),)
            offsets = None if place % 2 == 0 else np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            ids = rng.integers(0, teacher.info().vocab_size, shape).astype(np.int32)
            asked.append(ScoreItem(item.item_id, item.ids, item.first_row, item.n, ids, offsets))
        found = ask(scores(teacher, asked, Want(token_ids=True, full=True)))
        for item in asked:
            signal = found[item.item_id]
            assert signal.token_ids is not None
            assert signal.full is not None
            assert item.token_ids is not None
            np.testing.assert_array_equal(signal.token_ids.ids, item.token_ids)
            assert signal.token_ids.logprobs.dtype == np.float32
            counts = np.full(item.n, 3) if item.offsets is None else np.diff(item.offsets)
            expected = signal.full[np.repeat(np.arange(item.n), counts), item.token_ids.ravel()]
            np.testing.assert_allclose(signal.token_ids.logprobs.ravel(), expected, atol=self.tolerance)

    def test_the_output_head_makes_the_full_distribution_of_hidden_states(
        self, teacher: Teacher, items: list[ScoreItem]
    ) -> None:
        self._need(teacher, "hidden_states", "full")
        if not isinstance(teacher, HeadTeacher):
            pytest.skip("the teacher does not give its output head")
        found = ask(scores(teacher, items, Want(layers=(-1,), full=True)))
        head = ask(teacher.output_head())
        assert head.weight.shape == (teacher.info().vocab_size, teacher.info().hidden_size)
        for signal in found.values():
            assert signal.full is not None
            logits = signal.hidden[-1].astype(np.float64) @ head.weight.T.astype(np.float64)
            logits = head.scale * (logits + (0 if head.bias is None else head.bias))
            if head.soft_cap is not None:
                logits = head.soft_cap * np.tanh(logits / head.soft_cap)
            expected = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
            np.testing.assert_allclose(signal.full, expected, atol=self.tolerance)

    def test_samples_are_repeatable_draws(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        self._need(teacher, "samples")
        want = Want(samples=50)
        found, again = ask(scores(teacher, items, want)), ask(scores(teacher, items[::-1], want))
        for item in items:
            samples, repeated = found[item.item_id].samples, again[item.item_id].samples
            assert samples is not None
            assert repeated is not None
            assert (samples.counts.sum(axis=1) == 50).all()
            np.testing.assert_array_equal(samples.ids, repeated.ids)
            np.testing.assert_array_equal(samples.counts, repeated.counts)

    def test_a_capability_that_is_missing_is_refused(self, teacher: Teacher, items: list[ScoreItem]) -> None:
        wants = {"top_k": Want(top_k=1), "target": Want(target=True), "samples": Want(samples=1)}
        wants |= {"hidden_states": Want(layers=(-1,)), "full": Want(full=True)}
        for name in set(wants) - teacher.info().capabilities:
            with pytest.raises(LimbeckError) as caught:
                ask(scores(teacher, items, wants[name]))
            assert caught.value.reason is Reason.CAPABILITY_MISSING

    def test_what_cannot_be_scored_is_refused_by_name(self, teacher: Teacher) -> None:
        long = ScoreItem(31, _ids(teacher, teacher.info().max_length + 1, 0), 0, 1)
        outside = ScoreItem(32, np.array([1, teacher.info().vocab_size], np.int32), 0, 1)
        with pytest.raises(LimbeckError) as caught:
            ask(scores(teacher, [long, outside], self._want(teacher)))
        assert caught.value.reason is Reason.SCORING_FAILED
        assert {problem.field for problem in caught.value.problems} == {"item 31", "item 32"}

    def test_a_greedy_text_is_what_the_scores_say(self, teacher: Teacher, prompts: list[Prompt]) -> None:
        self._need(teacher, "generate", "top_k")
        found = ask(completions(teacher, prompts, Sampling(max_new_tokens=8)))
        assert set(found) == {prompt.item_id for prompt in prompts}
        for prompt in prompts:
            answer = found[prompt.item_id]
            assert not set(answer.ids.tolist()) & set(teacher.info().eos_ids)
            assert len(answer.ids) == 8 or answer.finish_reason == "stop"
            ids = np.concatenate([prompt.ids, answer.ids]).astype(np.int32)
            rows = ScoreItem(0, ids, len(prompt.ids) - 1, len(answer.ids) + (answer.finish_reason == "stop"))
            signal = ask(scores(teacher, [rows], Want(top_k=2)))[0]
            assert signal.top_k is not None
            best, logprobs, _ = signal.top_k.at(1.0)
            for row, token in enumerate(answer.ids):
                assert token in best[row][logprobs[row] >= logprobs[row, 0] - 0.01]
            if answer.finish_reason == "stop":
                assert best[len(answer.ids), 0] in teacher.info().eos_ids

    def test_what_is_said_while_writing_is_what_the_scores_say(self, teacher: Teacher, prompts: list[Prompt]) -> None:
        self._need(teacher, "generate_top_k", "top_k")
        # as they are taken for drawing, other numbers would come of each of these
        sampling = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=20, seed=5, logprobs=4)
        found = ask(completions(teacher, prompts, sampling))
        for prompt in prompts:
            answer = found[prompt.item_id]
            assert answer.said is not None
            told = answer.said.ids
            np.testing.assert_array_equal(told[: len(answer.ids)], answer.ids)
            if len(told) > len(answer.ids):
                assert answer.finish_reason == "stop"
                assert len(told) == len(answer.ids) + 1
                assert int(told[-1]) in teacher.info().eos_ids
            ids = np.concatenate([prompt.ids, told]).astype(np.int32)
            if not len(told) or len(ids) > teacher.info().max_length:
                continue
            rows = ScoreItem(0, ids, len(prompt.ids) - 1, len(told))
            score = ask(scores(teacher, [rows], Want(top_k=4, target="target" in teacher.info().capabilities)))[0]
            said = Signal(rows.first_row, len(told), top_k=answer.said.top_k, target=answer.said.target)
            assert said.top_k is not None
            assert said.top_k.temperatures == (1.0,)
            assert said.top_k.ids.shape == (len(told), 4)
            self._same(said, score, rows=len(told))
            if said.target is not None:
                _, logprobs, _ = said.top_k.at(1.0)
                hit = said.top_k.ids == told[:, None]
                drawn = np.broadcast_to(said.target[:, None], hit.shape)[hit]
                np.testing.assert_allclose(logprobs[hit], drawn, atol=2 * CODE_STEP + self.tolerance)

    def test_nothing_is_said_where_nothing_is_asked(self, teacher: Teacher, prompts: list[Prompt]) -> None:
        self._need(teacher, "generate")
        found = ask(completions(teacher, prompts, Sampling(max_new_tokens=2)))
        assert all(answer.said is None for answer in found.values())
        if "generate_top_k" not in teacher.info().capabilities:
            with pytest.raises(LimbeckError) as caught:
                ask(completions(teacher, prompts, Sampling(max_new_tokens=2, logprobs=1)))
            assert caught.value.reason is Reason.CAPABILITY_MISSING

    def test_a_draw_depends_on_seed_and_item_only(self, teacher: Teacher, prompts: list[Prompt]) -> None:
        self._need(teacher, "generate")
        sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=3)
        together = ask(completions(teacher, prompts, sampling))
        alone = {p.item_id: ask(completions(teacher, [p], sampling))[p.item_id] for p in prompts}
        for name, answer in together.items():
            np.testing.assert_array_equal(answer.ids, alone[name].ids)
        other = ask(completions(teacher, prompts, Sampling(max_new_tokens=8, temperature=1.0, seed=4)))
        assert any(other[name].ids.tolist() != answer.ids.tolist() for name, answer in together.items())

    def test_closing_the_iterator_stops_and_leaves_the_teacher_usable(
        self, teacher: Teacher, items: list[ScoreItem]
    ) -> None:
        want = self._want(teacher)

        async def first_only() -> int:
            async with aclosing(teacher.score(items, want)) as answers:
                async for item_id, _ in answers:
                    return item_id
            raise AssertionError("no answer came")

        assert ask(first_only()) in {item.item_id for item in items}
        assert len(ask(scores(teacher, items, want))) == len(items)

    def test_cancelling_a_request_where_it_waits_leaves_the_teacher_usable(
        self, teacher: Teacher, items: list[ScoreItem]
    ) -> None:
        want = self._want(teacher)

        async def cancelled() -> dict[int, Signal]:
            task = asyncio.ensure_future(scores(teacher, items, want))
            for _ in range(3):  # let it come to where it waits
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return await scores(teacher, items, want)

        assert len(ask(cancelled())) == len(items)

    def test_scores_and_texts_at_once_do_not_disturb_each_other(
        self, teacher: Teacher, items: list[ScoreItem], prompts: list[Prompt]
    ) -> None:
        self._need(teacher, "generate")
        want, sampling = self._want(teacher), Sampling(max_new_tokens=4)

        async def both() -> tuple[dict[int, Signal], dict[int, Completion]]:
            return await asyncio.gather(scores(teacher, items, want), completions(teacher, prompts, sampling))

        signals, texts = ask(both())
        for name, signal in ask(scores(teacher, items, want)).items():
            self._same(signals[name], signal, rows=signal.n)
        for name, text in ask(completions(teacher, prompts, sampling)).items():
            np.testing.assert_array_equal(texts[name].ids, text.ids)

    def _want(self, teacher: Teacher) -> Want:
        """Something that the teacher can answer."""
        can = teacher.info().capabilities
        if "top_k" in can:
            return Want(top_k=4, temperatures=(1.0,), target="target" in can)
        name = sorted(can - {"generate", "generate_top_k"})[0]
        return {"target": Want(target=True), "samples": Want(samples=4), "full": Want(full=True)}.get(
            name, Want(layers=(-1,))
        )

    def _need(self, teacher: Teacher, *capabilities: str) -> None:
        missing = set(capabilities) - teacher.info().capabilities
        if missing:
            pytest.skip(f"the teacher has no {', '.join(sorted(missing))}")

    def _same(self, one: Signal, other: Signal, rows: int) -> None:
        """The first `rows` rows of two answers agree."""
        if one.top_k is not None and other.top_k is not None:
            for temperature in one.top_k.temperatures:
                (_, a, tail_a), (_, b, tail_b) = one.top_k.at(temperature), other.top_k.at(temperature)
                np.testing.assert_allclose(a[:rows], b[:rows], atol=2 * CODE_STEP)
                np.testing.assert_allclose(tail_a[:rows], tail_b[:rows], atol=self.tolerance)
        if one.target is not None and other.target is not None:
            np.testing.assert_allclose(one.target[:rows], other.target[:rows], atol=self.tolerance)
        if one.full is not None and other.full is not None:
            np.testing.assert_allclose(one.full[:rows], other.full[:rows], atol=self.tolerance)


def _ids(teacher: Teacher, length: int, seed: int) -> npt.NDArray[np.int32]:
    """Ids of a made-up text, the leading <bos> there where the teacher has one."""
    info = teacher.info()
    ids = np.random.default_rng(seed).integers(0, info.vocab_size, length).astype(np.int32)
    if info.bos_id is not None:
        ids[0] = info.bos_id
    return ids
