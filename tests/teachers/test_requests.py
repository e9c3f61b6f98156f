"""Requests that cannot be answered are refused before any work, every fault at once."""

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, TeacherInfo, Want
from limbeck.teachers.requests import check_prompts, check_score

IDS = np.arange(6, dtype=np.int32)


def info(**changes) -> TeacherInfo:
    values = {
        "name": "t",
        "vocab_size": 10,
        "tokenizer_digest": "",
        "template_digest": None,
        "weights_digest": "",
        "max_length": 8,
        "capabilities": frozenset({"generate", "top_k", "target", "token_ids", "hidden_states"}),
        "eos_ids": (1,),
        "num_layers": 2,
    }
    return TeacherInfo(**(values | changes))


def refused(check, *arguments) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        check(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("want", "told"),
    [
        (Want(full=True), "has no full; it has generate, hidden_states, target, token_ids, top_k"),
        (Want(samples=2), "has no samples"),
        (Want(), "nothing is asked"),
        (Want(top_k=11), "top_k is 11, allowed is up to the vocabulary's 10"),
        (Want(top_k=2, temperatures=(0.0,)), "temperature 0.0 is not"),
        (Want(top_k=2, temperatures=(float("nan"),)), "temperature nan is not"),
        (Want(layers=(3,)), "layer 3 is not one of the teacher's 0 … 2"),
        (Want(layers=(-2,)), "layer -2 is not"),
    ],
)
def test_what_a_teacher_cannot_give_is_told(want, told):
    error = refused(check_score, info(), [ScoreItem(0, IDS, 0, 2)], want)
    assert error.reason is Reason.CAPABILITY_MISSING
    assert told in str(error)


def test_a_temperature_that_a_backend_cannot_produce_is_refused():
    error = refused(check_score, info(temperatures=(1.0,)), [], Want(top_k=2, temperatures=(1.0, 2.0)))
    assert error.reason is Reason.CAPABILITY_MISSING
    assert "cannot give temperature 2.0; it gives 1.0" in str(error)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (ScoreItem(5, IDS, 0, 6), "allowed are 0 … 4, the last of them with a next token"),
        (ScoreItem(5, IDS, -1, 2), "rows -1 … 0"),
        (ScoreItem(5, IDS, 0, 0), "rows 0 … -1"),
        (ScoreItem(5, np.zeros(0, np.int32), 0, 1), "at least 1 token"),
        (ScoreItem(5, np.zeros((2, 2), np.int32), 0, 1), "shape [2, 2]"),
        (ScoreItem(5, np.zeros(9, np.int32), 0, 1), "9 tokens, the teacher reads up to 8"),
        (ScoreItem(5, np.array([1, 10], np.int32), 0, 1), "id 10 is not in the vocabulary of 10"),
        (ScoreItem(5, np.array([-1, 2], np.int32), 0, 1), "id -1 is not"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named(item, told):
    error = refused(check_score, info(), [ScoreItem(4, IDS, 0, 5), item], Want(target=True))
    assert error.reason is Reason.SCORING_FAILED
    assert {problem.field for problem in error.problems} == {"item 5"}
    assert told in str(error)


@pytest.mark.parametrize(
    ("ids", "offsets"),
    [
        (None, None),
        (np.zeros((3, 2), np.int32), None),
        (np.zeros(4, np.int32), np.array([0, 2, 5])),
        (np.zeros(4, np.int32), np.array([0, 4])),
        (np.zeros(4, np.int32), np.array([0, 5, 4])),
        (np.full((2, 2), 10, np.int32), None),
    ],
)
def test_token_ids_that_do_not_fit_their_rows_are_refused(ids, offsets):
    item = ScoreItem(5, IDS, 0, 2, token_ids=ids, offsets=offsets)
    assert refused(check_score, info(), [item], Want(token_ids=True)).reason is Reason.SCORING_FAILED


def test_an_item_given_twice_is_refused():
    items = [ScoreItem(5, IDS, 0, 2), ScoreItem(5, IDS, 0, 2)]
    assert "item_id 5 is given 2 times" in str(refused(check_score, info(), items, Want(top_k=2)))


def test_every_fault_of_prompts_and_sampling_is_told_at_once():
    prompts = [Prompt(1, np.zeros(7, np.int32)), Prompt(2, np.array([99], np.int32))]
    error = refused(check_prompts, info(), prompts, Sampling(max_new_tokens=2, temperature=-1, top_p=0, top_k=-1))
    assert error.reason is Reason.GENERATION_FAILED
    fields = {problem.field for problem in error.problems}
    assert fields == {"item 1", "item 2", "temperature", "top_p", "top_k"}
    assert "7 tokens and 2 new ones" in str(error)


def test_a_teacher_that_only_scores_is_not_asked_to_write():
    error = refused(check_prompts, info(capabilities=frozenset({"top_k"})), [Prompt(1, IDS)], Sampling())
    assert error.reason is Reason.CAPABILITY_MISSING


def test_temperatures_are_of_the_support_alone():
    check_score(info(temperatures=(2.0,)), [], Want(target=True))


def test_a_teacher_that_tells_few_ids_is_not_asked_for_more():
    few = info(max_top_k=5, capabilities=frozenset({"generate", "generate_top_k", "top_k"}))
    check_score(few, [], Want(top_k=5))
    check_prompts(few, [], Sampling(logprobs=5))
    for error in (refused(check_score, few, [], Want(top_k=6)), refused(check_prompts, few, [], Sampling(logprobs=6))):
        assert "up to 5, the most that teacher t tells" in str(error)
