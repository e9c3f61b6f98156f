"""The self-check passes honest teachers and fails every kind of shifted one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Said, ScoreItem, Want
from limbeck.signals import Signal, TopK
from limbeck.teachers.selfcheck import self_check
from limbeck.testing.teachers import ask
from limbeck.testing.tiny import FAMILIES

from .families import folder_of, teacher_of


class Twisted:
    """A teacher whose scores pass through `twist(item, signal)`."""

    def __init__(self, teacher, twist):
        self._teacher, self._twist = teacher, twist

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    async def score(self, items, want: Want):
        by_id = {item.item_id: item for item in items}
        async for item_id, signal in self._teacher.score(items, want):
            yield item_id, self._twist(by_id[item_id], signal)


def shift(by: int):
    def twist(item: ScoreItem, signal: Signal) -> Signal:
        assert signal.top_k is not None
        rows = np.clip(np.arange(signal.n) + by, 0, signal.n - 1)
        return replace(signal, top_k=signal.top_k.take(rows), target=signal.target[rows])

    return twist


def shift_target(item: ScoreItem, signal: Signal) -> Signal:
    return replace(signal, target=np.roll(signal.target, 1))


def drop_rows(item: ScoreItem, signal: Signal) -> Signal:
    return replace(signal, n=signal.n - 1, top_k=signal.top_k.take(slice(1, None)))


def only_when_padded(item: ScoreItem, signal: Signal) -> Signal:
    return shift(1)(item, signal) if item.item_id == 1 else signal


def constant(item: ScoreItem, signal: Signal) -> Signal:
    ids = np.tile(np.arange(2, dtype=np.int32), (signal.n, 1))
    top_k = TopK.from_logprobs(ids, np.log(np.full((signal.n, 2), 0.4)), np.log(np.full((signal.n, 1), 0.2)), (1.0,))
    return replace(signal, top_k=top_k, target=None)


@pytest.fixture(scope="module")
def pair(tiny_teacher: Path):
    return teacher_of(tiny_teacher), Tokenizer.load(tiny_teacher)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_teacher_passes(family, tmp_path, data):
    folder = folder_of(family, tmp_path, data)
    ask(self_check(teacher_of(folder), Tokenizer.load(folder)))


@pytest.mark.parametrize("twist", [shift(1), shift(-1), shift_target, drop_rows, only_when_padded, constant])
def test_a_teacher_with_wrong_rows_fails(pair, twist):
    teacher, tokenizer = pair
    with pytest.raises(LimbeckError) as caught:
        ask(self_check(Twisted(teacher, twist), tokenizer))
    assert caught.value.reason is Reason.SELF_CHECK_FAILED


@pytest.mark.parametrize("by", [1, -1])
def test_a_shift_is_called_a_shift(pair, by):
    teacher, tokenizer = pair
    with pytest.raises(LimbeckError, match="shifted by"):
        ask(self_check(Twisted(teacher, shift(by)), tokenizer))


class Telling(Twisted):
    """A teacher that tells of what it writes, through `twist(said)`."""

    def info(self):
        info = self._teacher.info()
        return replace(info, capabilities=info.capabilities | {"generate_top_k"})

    def score(self, items, want: Want):
        return self._teacher.score(items, want)

    async def generate(self, prompts, sampling):
        given = {prompt.item_id: prompt.ids for prompt in prompts}
        async for answer in self._teacher.generate(prompts, replace(sampling, logprobs=0)):
            said = None
            if sampling.logprobs and len(answer.ids):
                ids = np.concatenate([given[answer.item_id], answer.ids]).astype(np.int32)
                item = ScoreItem(0, ids, len(given[answer.item_id]) - 1, len(answer.ids))
                async for _, signal in self._teacher.score([item], Want(top_k=sampling.logprobs)):
                    support, logprobs, _ = signal.top_k.at(1.0)
                    said = Said(answer.ids, TopK.without_tail(support, logprobs))
            yield replace(answer, said=self._twist(said))


def said_shifted(by: int):
    return lambda said: said and replace(said, top_k=said.top_k.take(np.roll(np.arange(len(said.ids)), -by)))


SAYINGS = {
    "shifted": said_shifted(1),
    "shifted back": said_shifted(-1),
    "cut": lambda said: said and replace(said, ids=said.ids[:-1], top_k=said.top_k.take(slice(-1))),
    "other ids": lambda said: said and replace(said, ids=np.roll(said.ids, 1)),
    "flattened": lambda said: said and replace(said, top_k=replace(said.top_k, tails=said.top_k.tails * 0 - 1e-3)),
    "nothing": lambda said: None,
}


def test_a_teacher_that_tells_what_it_scores_passes(pair):
    teacher, tokenizer = pair
    ask(self_check(Telling(teacher, lambda said: said), tokenizer))


@pytest.mark.parametrize("twist", SAYINGS.values(), ids=SAYINGS)
def test_a_teacher_that_tells_other_than_it_scores_fails(pair, twist):
    teacher, tokenizer = pair
    with pytest.raises(LimbeckError, match="that it writes") as caught:
        ask(self_check(Telling(teacher, twist), tokenizer))
    assert caught.value.reason is Reason.SELF_CHECK_FAILED


def test_a_teacher_that_cannot_write_has_nothing_to_compare(pair):
    teacher, tokenizer = pair

    class Silent(Twisted):
        def info(self):
            return replace(teacher.info(), capabilities=frozenset({"top_k"}))

    ask(self_check(Silent(teacher, shift(1)), tokenizer))
