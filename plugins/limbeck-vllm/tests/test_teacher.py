"""The teacher `vllm` with the real engine on a tiny model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, StartingTeacher, Teacher, Want
from limbeck.signals import Signal
from limbeck.teachers import TransformersConfig
from limbeck.testing.teachers import CODE_STEP, TeacherConformance, ask, completions, scores
from limbeck_vllm.process import EngineProcess
from limbeck_vllm.teacher import VllmTeacher

pytestmark = pytest.mark.vllm
# vLLM multiplies matrices of whatever requests it computes together, so that the last bits depend on these. Tails are
# logarithms of what is left of 1, which makes more of them.
TOLERANCE = 1e-3


class TestVllm(TeacherConformance):
    tolerance = TOLERANCE

    @pytest.fixture
    def teacher(self, vllm_teacher: VllmTeacher) -> Teacher:
        return vllm_teacher


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Teacher:
    from limbeck.teachers.transformers import TransformersTeacher

    return TransformersTeacher(TransformersConfig(model=str(tiny_folder), device="cpu"))


def text(length: int, seed: int) -> npt.NDArray[np.int32]:
    ids = np.random.default_rng(seed).integers(3, 261, length).astype(np.int32)
    ids[0] = 2
    return ids


def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def same(found: Signal, expected: Signal) -> None:
    """Two signals agree: ids where they are no ties, numbers within the tolerance."""
    assert (found.first_row, found.n) == (expected.first_row, expected.n)
    if found.top_k is not None and expected.top_k is not None:
        (ids, logprobs, tail), (others, other_logprobs, other_tail) = found.top_k.at(1.0), expected.top_k.at(1.0)
        np.testing.assert_allclose(logprobs, other_logprobs, atol=2 * CODE_STEP)
        np.testing.assert_allclose(tail, other_tail, atol=5 * TOLERANCE)
        clear = np.abs(np.diff(other_logprobs, axis=1)).min(axis=1) > 3 * CODE_STEP
        np.testing.assert_array_equal(ids[clear], others[clear])
    if found.target is not None and expected.target is not None:
        np.testing.assert_allclose(found.target, expected.target, atol=TOLERANCE)


def test_info_tells_what_it_can_and_starts_nothing(vllm_teacher: VllmTeacher, reference: Teacher) -> None:
    fresh = VllmTeacher(vllm_teacher.config)
    info, known = fresh.info(), reference.info()
    assert info.capabilities == {"generate", "generate_top_k", "top_k", "target"}
    assert (info.temperatures, info.tail_exact) == ((1.0,), False)
    assert info.max_length == known.max_length - 1
    for name in ("vocab_size", "tokenizer_digest", "template_digest", "weights_digest", "eos_ids", "bos_id"):
        assert getattr(info, name) == getattr(known, name)
    assert fresh._engine is None


def test_what_it_cannot_do_is_refused_before_any_work(vllm_teacher: VllmTeacher) -> None:
    item = ScoreItem(0, text(5, 0), 0, 4, np.zeros((4, 2), np.int32))
    for want in (Want(token_ids=True), Want(layers=(-1,)), Want(full=True), Want(top_k=2, temperatures=(2.0,))):
        with pytest.raises(LimbeckError) as caught:
            vllm_teacher.score([item], want)
        assert caught.value.reason is Reason.CAPABILITY_MISSING


@pytest.mark.parametrize(("first", "n", "target"), [(0, 199, True), (150, 49, True), (63, 2, True), (0, 200, False)])
def test_every_row_range_of_a_text_longer_than_a_piece_is_that_of_transformers(
    vllm_teacher: VllmTeacher, reference: Teacher, first: int, n: int, target: bool
) -> None:
    item, want = ScoreItem(1, text(200, 1), first, n), Want(top_k=5, target=target)
    same(ask(scores(vllm_teacher, [item], want))[1], ask(scores(reference, [item], want))[1])


def test_the_longest_sequence_is_answered_and_a_longer_one_refused(
    vllm_teacher: VllmTeacher, reference: Teacher
) -> None:
    longest = vllm_teacher.info().max_length
    item, want = ScoreItem(1, text(longest, 2), longest - 3, 3), Want(top_k=3)
    same(ask(scores(vllm_teacher, [item], want))[1], ask(scores(reference, [item], want))[1])
    with pytest.raises(LimbeckError, match="could not score"):
        vllm_teacher.score([ScoreItem(1, text(longest + 1, 2), 0, 1)], want)


def test_the_whole_vocabulary_as_support_leaves_no_tail(vllm_teacher: VllmTeacher) -> None:
    size = vllm_teacher.info().vocab_size
    signal = ask(scores(vllm_teacher, [ScoreItem(1, text(20, 3), 0, 20)], Want(top_k=size)))[1]
    assert signal.top_k is not None
    assert (np.sort(signal.top_k.ids, axis=1) == np.arange(size)).all()
    assert (np.exp(signal.top_k.tails) < 1e-4).all()


def test_a_text_that_is_asked_again_is_scored_again_whatever_is_cached(vllm_teacher: VllmTeacher) -> None:
    ids, want = text(300, 4), Want(top_k=4, target=True)
    ask(completions(vllm_teacher, [Prompt(0, ids)], Sampling(max_new_tokens=2)))  # its prefix is in the cache now
    first = ask(scores(vllm_teacher, [ScoreItem(1, ids, 0, 299)], want))[1]
    same(ask(scores(vllm_teacher, [ScoreItem(1, ids, 0, 299)], want))[1], first)


def test_more_sequences_than_fit_at_once_are_all_answered(vllm_teacher: VllmTeacher, reference: Teacher) -> None:
    items = [ScoreItem(i, text(10 + 7 * i, i), 2, 5) for i in range(30)]
    want = Want(top_k=3, target=True)
    found, expected = ask(scores(vllm_teacher, items, want)), ask(scores(reference, items, want))
    for item in items:
        same(found[item.item_id], expected[item.item_id])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_what_is_said_while_writing_is_what_scoring_says(
    vllm_teacher: VllmTeacher, reference: Teacher, temperature: float
) -> None:
    prompts = [Prompt(i, text(6 + i, i)) for i in range(8)]
    sampling = Sampling(max_new_tokens=120, temperature=temperature, top_p=0.99, top_k=250, seed=5, logprobs=6)
    written = ask(completions(vllm_teacher, prompts, sampling))
    assert temperature == 0 or {answer.finish_reason for answer in written.values()} == {"stop", "length"}
    ends = set(vllm_teacher.info().eos_ids)
    for prompt in prompts:
        answer = written[prompt.item_id]
        said = answer.said
        assert said is not None
        assert not ends & set(answer.ids.tolist())
        assert said.ids[: len(answer.ids)].tolist() == answer.ids.tolist()
        assert [token in ends for token in said.ids[len(answer.ids) :]] == [True] * (answer.finish_reason == "stop")
        ids = np.concatenate([prompt.ids, said.ids])
        item = ScoreItem(0, ids, len(prompt.ids) - 1, len(said.ids))
        signal = ask(scores(reference, [item], Want(top_k=6, target=True)))[0]
        same(Signal(signal.first_row, signal.n, top_k=said.top_k, target=said.target), signal)


def test_nothing_is_said_where_nothing_is_asked(vllm_teacher: VllmTeacher) -> None:
    answer = ask(completions(vllm_teacher, [Prompt(1, text(5, 1))], Sampling(max_new_tokens=3)))[1]
    assert answer.said is None


def test_a_greedy_text_is_that_of_transformers(vllm_teacher: VllmTeacher, reference: Teacher) -> None:
    prompts, sampling = [Prompt(i, text(9 + 5 * i, 40 + i)) for i in range(4)], Sampling(max_new_tokens=24)
    found, expected = ask(completions(vllm_teacher, prompts, sampling)), ask(completions(reference, prompts, sampling))
    for name, answer in found.items():
        assert answer.ids.tolist() == expected[name].ids.tolist()
        assert answer.finish_reason == expected[name].finish_reason


@pytest.mark.parametrize("template", ["plain", "no_bos"])
@pytest.mark.parametrize("name", ["tok_a", "tok_a_adds_bos"])
def test_case_c43_one_bos_whoever_adds_it(
    vllm_teacher: VllmTeacher, reference: Teacher, data: Path, name: str, template: str
) -> None:
    from limbeck.data import prepare, prompt_of, read_rows
    from limbeck.recipe import DataSpec

    rows, problems = read_rows([data / "C43" / "rows.jsonl"])
    tokenizer = Tokenizer.load(data / name, chat_template=data / name / "templates" / f"{template}.jinja")
    trained = prepare(rows, problems, tokenizer, DataSpec(path="rows.jsonl", holdout=0)).train
    for row, sequence in zip(rows, trained, strict=True):
        ids = sequence.ids
        assert ids.tolist().count(2) == 1
        assert ids[0] == 2
        item, want = ScoreItem(1, ids, 0, len(ids)), Want(top_k=5)  # a second <bos> would move every row
        same(ask(scores(vllm_teacher, [item], want))[1], ask(scores(reference, [item], want))[1])
        if row.format != "text":
            prompt, sampling = Prompt(1, tokenizer.encode_prompt(prompt_of(row))), Sampling(max_new_tokens=6)
            assert prompt.ids.tolist() == ids[: len(prompt.ids)].tolist()
            (found,) = ask(completions(vllm_teacher, [prompt], sampling)).values()
            (expected,) = ask(completions(reference, [prompt], sampling)).values()
            assert found.ids.tolist() == expected.ids.tolist()


def test_a_second_bos_is_not_taken_away_either(vllm_teacher: VllmTeacher, reference: Teacher) -> None:
    ids = np.array([2, 2, 70, 71, 72], np.int32)
    item, want = ScoreItem(1, ids, 0, 5), Want(top_k=5)
    same(ask(scores(vllm_teacher, [item], want))[1], ask(scores(reference, [item], want))[1])


def test_several_threads_with_loops_of_their_own_ask_one_engine(vllm_teacher: VllmTeacher) -> None:
    items, want = [ScoreItem(i, text(30, i), 0, 29) for i in range(5)], Want(top_k=3)
    found: list[dict[int, Signal]] = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(scores(vllm_teacher, items, want)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for name in range(5):
        same(found[1][name], found[0][name])
        same(found[2][name], found[0][name])


def test_closing_the_iterator_takes_its_requests_from_the_engine(vllm_teacher: VllmTeacher) -> None:
    prompts = [Prompt(i, text(5, i)) for i in range(6)]

    async def given_up() -> set[int]:
        async with aclosing(vllm_teacher.generate(prompts, Sampling(max_new_tokens=450, temperature=1.0))) as answers:
            task = asyncio.ensure_future(anext(answers))
            while not engine()._asked:
                await asyncio.sleep(0.01)
            asked = set(engine()._asked)
            task.cancel()
            await asyncio.wait([task])
        return asked

    def engine() -> EngineProcess:
        assert vllm_teacher._engine is not None
        return vllm_teacher._engine

    ask(scores(vllm_teacher, [ScoreItem(0, text(5, 0), 0, 4)], Want(top_k=1)))  # it runs
    asked = asyncio.run(given_up())
    assert len(asked) == 6
    assert not engine()._asked
    wanted = {f"Request {number} aborted." for number in asked}  # as vLLM logs it
    until(lambda: all(any(words in line for line in list(engine()._lines)) for words in wanted))


def test_a_slow_reader_is_waited_for(vllm_teacher: VllmTeacher) -> None:
    items = [ScoreItem(i, text(20, i), 0, 19) for i in range(40)]

    async def read_two() -> int:
        async with aclosing(vllm_teacher.score(items, Want(top_k=2))) as answers:
            await anext(answers)
            await asyncio.sleep(1.0)
            await anext(answers)
            return next(vllm_teacher._numbers)

    before = next(vllm_teacher._numbers)
    assert asyncio.run(read_two()) - before <= vllm_teacher.config.concurrency + 3  # not all forty


def test_a_start_that_is_over_returns_at_once(vllm_teacher: VllmTeacher) -> None:
    assert isinstance(vllm_teacher, StartingTeacher)
    ask(scores(vllm_teacher, [ScoreItem(0, text(5, 0), 0, 4)], Want(top_k=1)))
    phases: list[str] = []
    asyncio.run(vllm_teacher.start(phases.append))
    assert phases == []
