"""A budget is never exceeded, stops cleanly, and goes on from where it was."""

import asyncio
from contextlib import aclosing

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt
from limbeck.testing.text_teachers import answers, ask
from limbeck_openai.requests import make_request

PRICE = {"input": 1.0, "output": 10.0, "currency": "EUR"}  # 10 tokens read, 5 written: 60 millionths
SAMPLING = Sampling(max_new_tokens=5)


def prompts(count):
    return [TextPrompt(i, f"prompt {i:04}") for i in range(count)]


def until_it_stops(teacher, count):
    """What came before the error, and the error."""
    came = {}

    async def go():
        async with aclosing(teacher.complete(prompts(count), SAMPLING)) as given:
            async for answer in given:
                came[answer.item_id] = answer

    with pytest.raises(LimbeckError) as caught:
        ask(go())
    return came, caught.value


@pytest.fixture
def most(make, serve):
    """Tokens that one of the prompts may read at most."""
    return make_request(make(serve()).config, prompts(1)[0], SAMPLING).most_read


@pytest.mark.parametrize("concurrency", [1, 4])
def test_tokens_stop_before_the_call_that_could_exceed_them_and_more_go_on(serve, make, most, concurrency):
    server = serve(slow=0.02)
    budget = 5 * 15 + most + 5  # five answers, and room for the most that a sixth may take
    teacher = make(server, budget={"tokens": budget}, concurrency=concurrency)
    came, error = until_it_stops(teacher, 20)
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert error.problems[0].field == "budget.tokens"
    assert f"{6 * 15} of {budget} tokens are used" in str(error)
    assert f"may take {most + 5}" in str(error)
    assert "raise the budget" in error.problems[0].hint
    assert len(came) == len(server.asked) == 6
    assert all(answer.rejected is None for answer in came.values())
    more = make(server, budget={"tokens": 20 * 15 + most + 5}, concurrency=concurrency)
    assert len(ask(answers(more, prompts(20), SAMPLING))) == 20
    assert len(server.asked) == 20
    assert more.usage()["cached"] == 6


def test_money_stops_likewise(serve, make, most):
    server = serve()
    money = (3 * 60 + most + 50) / 1e6
    came, error = until_it_stops(make(server, price=PRICE, budget={"money": money}), 20)
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert error.problems[0].field == "budget.money"
    assert "0.00024 of" in str(error)
    assert "€0.00034" in str(error)
    assert len(came) == len(server.asked) == 4


def test_what_is_kept_is_given_out_whatever_the_budget_says(serve, make):
    server = serve()
    ask(answers(make(server), prompts(3), SAMPLING))
    came, error = until_it_stops(make(server, budget={"tokens": 1}), 5)
    assert error.reason is Reason.BUDGET_EXHAUSTED
    assert set(came) == {0, 1, 2}
    assert len(server.asked) == 3


def test_calls_that_may_have_been_paid_for_count_at_their_most(serve, make, most):
    cut = {"then": "cut"}
    server = serve({}, cut, cut)
    teacher = make(server, budget={"tokens": 10**6}, price=PRICE)
    ask(answers(teacher, prompts(2), SAMPLING))
    usage = teacher.usage()
    assert (usage["calls"], usage["unmetered"]) == (4, 2)
    assert usage["prompt_tokens"] == 2 * 10 + 2 * most
    came, error = until_it_stops(make(server, budget={"tokens": 1}), 3)
    assert f"{2 * 15 + 2 * (most + 5)} of 1 tokens" in str(error)
    assert len(came) == 2


@pytest.mark.parametrize("step", [{"status": 500}, {"status": 429, "headers": {"retry-after-ms": "10"}}])
def test_calls_that_were_refused_cost_nothing(serve, make, step):
    server = serve(step)
    teacher = make(server, budget={"tokens": 10**6})
    ask(answers(teacher, prompts(1), SAMPLING))
    assert teacher.usage()["prompt_tokens"] == 10
    _, error = until_it_stops(make(server, budget={"tokens": 1}), 2)
    assert "15 of 1 tokens are used" in str(error)


def test_two_teachers_of_one_folder_share_its_budget(serve, make, most):
    server = serve(slow=0.05)
    budget = {"tokens": 6 * 15 + most + 5}
    both = [make(server, budget=budget, extra={"user": name}, concurrency=2) for name in "ab"]

    async def at_once():
        return await asyncio.gather(*(answers(t, prompts(20), SAMPLING) for t in both), return_exceptions=True)

    errors = ask(at_once())
    assert [error.reason for error in errors] == [Reason.BUDGET_EXHAUSTED] * 2
    assert len(server.paid) == 7


def test_cost_is_the_services_count_times_the_price(serve, make):
    teacher = make(serve({"tokens": (1000, 200)}), price=PRICE)
    ask(answers(teacher, prompts(1)))
    assert teacher.usage()["cost"] == pytest.approx(0.001 + 0.002)
    assert teacher.info().price == (1.0, 10.0)
    assert teacher.info().currency == "EUR"
