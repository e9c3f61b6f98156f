"""The real Gemma 3 270M: vLLM says what transformers says, position by position, in float32 on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from limbeck.data import Tokenizer
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Teacher, Want
from limbeck.signals import Signal
from limbeck.signals.topk import dequantise
from limbeck.teachers import TransformersConfig
from limbeck.teachers.selfcheck import self_check
from limbeck.testing.teachers import ask, completions, scores
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.teacher import VllmTeacher

pytestmark = [pytest.mark.vllm, pytest.mark.gemma]
K = 64
LOGPROB = 2e-4  # largest difference of a target's log-probability, which is not rounded to codes
CODES = 2  # steps of 1/2048 that a stored log-probability may differ by
MASS = 1e-4  # largest difference of the probability outside of the support

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. Both are old.",
    "def add(first, second):\n    return first + second\n\nprint(add(19, 23))\n",
    "Übergänge – naïve façades; 数学は美しい。 ÷ 7² ≈ 49!",
    "It was a dark night. " * 20,
    "a",
)


@pytest.fixture(scope="module")
def here(gemma: Path) -> Iterator[VllmTeacher]:
    engine = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 128}
    teacher = VllmTeacher(VllmConfig(model=str(gemma), dtype="float32", engine=engine))
    yield teacher
    asyncio.run(teacher.close())


@pytest.fixture(scope="module")
def reference(gemma: Path) -> Teacher:
    from limbeck.teachers.transformers import TransformersTeacher

    return TransformersTeacher(TransformersConfig(model=str(gemma), device="cpu"))


@pytest.fixture(scope="module")
def texts(gemma: Path) -> list[npt.NDArray[np.int32]]:
    tokenizer = Tokenizer.load(gemma)
    return [tokenizer.encode_prompt(text) for text in TEXTS]


def compare(found: Signal, expected: Signal, k: int) -> None:
    """The same ids but for ties at the edge of the support, by value; the same numbers."""
    assert (found.first_row, found.n) == (expected.first_row, expected.n)
    assert found.top_k is not None
    assert expected.top_k is not None
    for row in range(found.n):
        ours = dict(zip(found.top_k.ids[row].tolist(), dequantise(found.top_k.u[row]).tolist(), strict=True))
        theirs = dict(zip(expected.top_k.ids[row].tolist(), dequantise(expected.top_k.u[row]).tolist(), strict=True))
        step = CODES / (2048 if min(theirs.values()) > -16 else 512)
        for name in ours.keys() & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=step)
        edge = min(theirs.values())
        for name in ours.keys() ^ theirs.keys():  # only an id as likely as the last of the support
            assert (ours | theirs)[name] == pytest.approx(edge, abs=step)
        assert len(ours) == len(theirs) == k
    np.testing.assert_allclose(np.exp(found.top_k.tails), np.exp(expected.top_k.tails), atol=MASS)


def test_scores_are_those_of_transformers(
    here: VllmTeacher, reference: Teacher, texts: list[npt.NDArray[np.int32]]
) -> None:
    items = [ScoreItem(i, ids, 0, len(ids) - 1) for i, ids in enumerate(texts)]
    want = Want(top_k=K, target=True)
    found, expected = ask(scores(here, items, want)), ask(scores(reference, items, want))
    for item in items:
        ours, theirs = found[item.item_id], expected[item.item_id]
        compare(ours, theirs, K)
        assert ours.target is not None
        assert theirs.target is not None
        np.testing.assert_allclose(ours.target, theirs.target, atol=LOGPROB)


def test_the_row_after_the_last_token_is_that_of_transformers(
    here: VllmTeacher, reference: Teacher, texts: list[npt.NDArray[np.int32]]
) -> None:
    items = [ScoreItem(i, ids, len(ids) - 1, 1) for i, ids in enumerate(texts)]
    want = Want(top_k=K)
    found, expected = ask(scores(here, items, want)), ask(scores(reference, items, want))
    for item in items:
        compare(found[item.item_id], expected[item.item_id], K)


def test_a_greedy_text_and_what_is_said_of_it_are_those_of_transformers(
    here: VllmTeacher, reference: Teacher, texts: list[npt.NDArray[np.int32]]
) -> None:
    prompts = [Prompt(i, ids) for i, ids in enumerate(texts[:3])]
    found = ask(completions(here, prompts, Sampling(max_new_tokens=16, logprobs=K)))
    expected = ask(completions(reference, prompts, Sampling(max_new_tokens=16)))
    for prompt in prompts:
        ours = found[prompt.item_id]
        assert ours.ids.tolist() == expected[prompt.item_id].ids.tolist()
        assert ours.said is not None
        ids = np.concatenate([prompt.ids, ours.said.ids])
        item = ScoreItem(0, ids, len(prompt.ids) - 1, len(ours.said.ids))
        theirs = ask(scores(reference, [item], Want(top_k=K, target=True)))[0]
        compare(Signal(theirs.first_row, theirs.n, top_k=ours.said.top_k), theirs, K)
        assert ours.said.target is not None
        assert theirs.target is not None
        np.testing.assert_allclose(ours.said.target, theirs.target, atol=LOGPROB)


def test_it_passes_the_self_check_of_a_capture(here: VllmTeacher, gemma: Path) -> None:
    asyncio.run(self_check(here, Tokenizer.load(gemma)))
