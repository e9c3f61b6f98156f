"""What is sent: everything explicit, nothing dropped."""

from dataclasses import replace

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt
from limbeck.testing.text_teachers import answers, ask
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.requests import make_request

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "weight": 0}]
GREEDY = Sampling()
DRAWN = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3)


def sent(serve, make, prompt, sampling, **options):
    server = serve()
    ask(answers(make(server, **options), [TextPrompt(4, prompt)], sampling))
    (record,) = server.asked
    return record


def test_chat(serve, make):
    record = sent(serve, make, CHAT, replace(DRAWN, logprobs=2), logprobs=5, extra={"service_tier": "flex"})
    seed = record["body"].pop("seed")
    assert record["path"] == "/v1/chat/completions"
    assert record["body"] == {
        "model": "small",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "logprobs": True,
        "top_logprobs": 2,
        "service_tier": "flex",
        "stream": False,
    }
    assert 0 <= seed < 2**31


def test_a_text_becomes_one_message_of_the_user(serve, make):
    body = sent(serve, make, "Hi", Sampling())["body"]
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0, 1, 64, 0)


def test_completions_take_the_text_as_it_is(serve, make):
    record = sent(serve, make, "Hi", replace(DRAWN, logprobs=2, seed=0), logprobs=5, api="completions")
    assert record["path"] == "/v1/completions"
    assert record["body"].pop("seed") > 0
    assert record["body"] == {
        "model": "small",
        "prompt": "Hi",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "logprobs": 2,
        "stream": False,
    }


def test_responses_are_not_kept_by_the_service(serve, make):
    record = sent(serve, make, "Hi", replace(DRAWN, logprobs=2, seed=0), logprobs=5, api="responses")
    assert record["path"] == "/v1/responses"
    assert record["body"] == {
        "model": "small",
        "input": [{"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 7,
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
        "store": False,
        "stream": False,
    }


def test_a_stream_asks_for_the_usage(serve, make):
    body = sent(serve, make, "Hi", Sampling(), stream=True)["body"]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_fields_get_the_names_that_the_endpoint_knows(serve, make):
    fields = {"top_k": "top_k", "temperature": None, "seed": "random_seed"}
    sampling = Sampling(temperature=1.0, top_k=40)
    body = sent(serve, make, "Hi", sampling, fields=fields)["body"]
    assert body["top_k"] == 40
    assert "temperature" not in body
    assert "random_seed" in body


@pytest.mark.parametrize(
    ("options", "sampling", "field"),
    [
        ({}, Sampling(top_k=5), "top_k"),
        ({"api": "responses"}, Sampling(seed=1), "seed"),
        ({"fields": {"temperature": None}}, Sampling(temperature=0.0), "temperature"),
        ({}, Sampling(logprobs=1), "logprobs"),
        ({"logprobs": 3}, Sampling(logprobs=4), "logprobs"),
    ],
)
def test_what_the_endpoint_cannot_take_is_refused_and_not_dropped(serve, make, options, sampling, field):
    server = serve()
    with pytest.raises(LimbeckError) as caught:
        make(server, **options).complete([TextPrompt(0, "a")], sampling)
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    (problem,) = caught.value.problems
    assert problem.field == field
    assert problem.hint
    assert not server.asked


def test_chat_messages_for_completions_are_refused_with_a_remedy(serve, make):
    with pytest.raises(LimbeckError) as caught:
        make(serve(), api="completions").complete([TextPrompt(3, CHAT)], Sampling())
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert caught.value.problems[0].field == "item 3"
    assert "api: chat" in caught.value.problems[0].hint


def test_all_faults_of_a_request_are_told_at_once(serve, make):
    prompts = [TextPrompt(1, "a"), TextPrompt(1, "b"), TextPrompt(2, "\ud800")]
    with pytest.raises(LimbeckError) as caught:
        make(serve()).complete(prompts, Sampling(max_new_tokens=0, temperature=-1.0, top_p=0.0))
    assert caught.value.reason is Reason.GENERATION_FAILED
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"max_new_tokens", "temperature", "top_p", "item 1", "item 2"}


def test_a_draw_depends_on_seed_and_item_alone():
    config = OpenAIConfig(model="m", base_url="http://localhost/v1")

    def body(item_id, **sampling):
        return make_request(config, TextPrompt(item_id, "a"), Sampling(temperature=1.0, **sampling)).body

    assert body(1, seed=2) == body(1, seed=2)
    seeds = {body(item, seed=seed)["seed"] for item in range(20) for seed in range(20)}
    assert len(seeds) == 400


def test_a_greedy_prompt_is_the_same_request_at_any_place_and_a_drawn_one_is_not():
    for api in ("chat", "responses", "completions"):
        config = OpenAIConfig(model="m", base_url="http://localhost/v1", api=api)
        greedy = {make_request(config, TextPrompt(i, "a"), Sampling()).key for i in range(3)}
        drawn = {make_request(config, TextPrompt(i, "a"), Sampling(temperature=1.0)).key for i in range(3)}
        assert (len(greedy), len(drawn)) == (1, 3), api


def test_another_service_api_or_value_is_another_request():
    def key(sampling=GREEDY, prompt="a", **options):
        given = {"model": "m", "base_url": "http://localhost/v1", **options}
        return make_request(OpenAIConfig(**given), TextPrompt(0, prompt), sampling).key

    others = [
        key(model="n"),
        key(base_url="http://localhost/v2"),
        key(api="responses"),
        key(extra={"user": "x"}),
        key(Sampling(max_new_tokens=3)),
        key(Sampling(seed=1)),
        key(prompt="b"),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key(stream=True) == key(timeout=1.0) == key(concurrency=3) == key(reasoning_tag="t") == key()
