"""Every fault that a service can have: what is asked again, what is waited for, what stops, what is recorded."""

import asyncio
import itertools
import json
import socket
import time
from contextlib import aclosing
from email.utils import formatdate
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt
from limbeck.testing.text_teachers import answers, ask
from limbeck_openai import desk
from limbeck_openai.gate import Gate, told_reset, told_wait
from limbeck_openai.tally import Tally

C38 = Path(__file__).parents[3] / "tests" / "data" / "C38" / "script.json"


def prompts(count):
    return [TextPrompt(i, f"prompt {i}") for i in range(count)]


def asked(teacher, count=1, **sampling):
    found = ask(answers(teacher, prompts(count), Sampling(**sampling)))
    return [found[i] for i in range(count)]


def error_of(teacher, count=1):
    """What came before the error, and the error."""
    came = {}

    async def go():
        async with aclosing(teacher.complete(prompts(count), Sampling())) as given:
            async for answer in given:
                came[answer.item_id] = answer

    with pytest.raises(LimbeckError) as caught:
        ask(go())
    return came, caught.value


def whole_of(content):
    """The body of a chat answer with so much JSON as its content."""
    return f'{{"model": "small", "choices": [{{"message": {{"content": {content}}}, "finish_reason": "stop"}}]}}'


def in_three_seconds():
    return formatdate(time.time() + 3, usegmt=True)


STEPS = {  # of the case, as the scripted server plays them
    "stream 3 chunks, then close the socket: no finish_reason, no [DONE]": [{"parts": 3, "then": "cut"}],
    "finish_reason length": [{"finish": "length"}],
    "finish_reason content_filter, content null": [{"finish": "content_filter", "message": {"content": None}}],
    "429 with Retry-After: 2": [{"status": 429, "headers": {"retry-after": "2"}}],
    "429 with Retry-After as an HTTP date, 3 s ahead": [{"status": 429, "headers": {"retry-after": in_three_seconds}}],
    "accept, send no byte": [{"silent": True}],
    "200, body `<html>gateway</html>`": [
        {"status": 200, "body": "<html>gateway</html>", "headers": {"content-type": "text/html"}}
    ],
    "500 twice, then 200": [{"status": 500}, {"status": 500}, {}],
    "401": [{"status": 401, "body": {"error": {"message": "Incorrect API key provided."}}}],
}


def steps(*numbers):
    """Steps of C38's script by the numbers of its requests, all of them without any."""
    script = json.loads(C38.read_text())
    chosen = [entry for entry in script if not numbers or entry["request"] in numbers]
    return [step for entry in chosen for step in STEPS[entry["do"]]]


def test_the_whole_script_of_the_case(serve, make):
    server = serve(*steps())
    teacher = make(server, stream=True, timeout=0.5)
    came, error = error_of(teacher, 9)
    assert error.reason is Reason.TEACHER_REFUSED
    assert "Incorrect API key" in str(error)
    assert {item: (answer.rejected, answer.finish_reason) for item, answer in came.items()} == {
        0: (None, "length"),  # asked again, since its first answer was cut; this one ended by its limit
        1: ("content_filter", "stop"),
        2: (None, "stop"),  # after two 429, silence, HTML and two 500
    }
    assert [prompt[-1] for prompt in server.prompts] == list("00122222223")
    at = [record["at"] for record in server.asked]
    assert at[4] - at[3] >= 2  # as told
    assert at[5] - at[4] >= 1.9  # an HTTP date has whole seconds
    usage = teacher.usage()
    assert (usage["calls"], usage["retries"]) == (11, 7)
    assert usage["waited"] >= 3.9


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        {"then": "cut", "parts": 3},
        {"then": "stall", "parts": 3},
        {"silent": True},
        {"status": 200, "body": "<html>gateway</html>", "headers": {"content-type": "text/html"}},
        {"status": 200, "body": '{"choices": ['},
        {"status": 200, "body": '{"choices": []}'},
        {"status": 200, "body": "[1]"},
        {"status": 200, "body": "7"},
        {"status": 200, "body": "[" * 100_000},
        {"status": 200, "body": whole_of('"caf\xe9"').encode("latin-1")},
        {"status": 200, "body": whole_of(r'"half of a pair: \ud83d"')},
        {"status": 200, "body": whole_of("7")},
        *(
            {"status": 200, "body": f"data: {event}\n\n", "headers": {"content-type": "text/event-stream"}}
            for event in (
                "{oh",
                "7",
                "[" * 100_000,
                '{"choices": 7}',
                '{"choices": [null]}',
                '{"choices": [{"delta": 7}]}',
            )
        ),
        {"status": 200, "body": "", "headers": {"content-type": "text/event-stream"}},
        *({"status": status} for status in (408, 409, 500, 502, 503, 504, 529)),
    ],
    ids=lambda step: repr(step)[:60],
)
def test_a_passing_fault_is_asked_again_and_never_kept(serve, make, step, stream):
    server = serve(step)
    teacher = make(server, stream=stream, timeout=1.0)
    if step.get("then") == "stall" and not stream:
        pytest.skip("a whole answer has no parts")
    (answer,) = asked(teacher)
    assert (answer.text, answer.rejected) == ("echo prompt 0", None)
    assert len(server.asked) == 2
    assert teacher.usage()["retries"] == 1
    assert ask(answers(teacher, prompts(1)))[0].text == "echo prompt 0"  # from the cache
    assert len(server.asked) == 2


def test_a_prompt_is_tried_as_often_as_the_config_says(serve, make):
    server = serve({}, *[{"status": 500}] * 3)
    teacher = make(server, tries=3)
    good, failed, after = asked(teacher, 3)
    assert (good.rejected, after.rejected) == (None, None)
    assert failed.rejected.startswith("failed: 500")
    assert server.prompts == ["prompt 0", *["prompt 1"] * 3, "prompt 2"]


def test_silence_is_waited_for_as_long_as_the_tries_say_and_no_longer(serve, make):
    server = serve({}, *[{"silent": True}] * 3)
    _, failed = asked(make(server, tries=3, timeout=0.3), 2)
    assert failed.rejected == "failed: no answer within 0.3 s"
    at = [record["at"] for record in server.asked[1:]]
    assert len(at) == 3
    assert all(later - earlier >= 0.29 for earlier, later in itertools.pairwise(at))


def test_a_stream_may_take_longer_than_the_timeout_as_long_as_parts_come(serve, make):
    server = serve({"gap": 0.2})
    (answer,) = asked(make(server, stream=True, timeout=0.6, tries=1))
    assert answer.text == "echo prompt 0"


def test_html_for_every_prompt_is_an_error_with_its_first_bytes(serve, make):
    html = {"status": 200, "body": "<html>gateway</html>" + "x" * 1000}
    server = serve(*[html] * 99)
    came, error = error_of(make(server, tries=2), 5)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "<html>gateway</html>" + "x" * 180 in str(error)
    assert "x" * 181 not in str(error)
    assert not came
    assert len(server.asked) == 6  # three prompts in a row


@pytest.mark.parametrize("step", [{"status": 500}, {"silent": True}, {"then": "cut"}])
def test_an_outage_turns_no_prompt_into_a_reject(serve, make, step):
    server = serve({}, *[step] * 99)
    teacher = make(server, tries=2, timeout=0.2)
    came, error = error_of(teacher, 10)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert set(came) == {0}
    server.steps.clear()
    assert all(answer.rejected is None for answer in asked(teacher, 10))


def test_an_outage_from_the_start_is_no_reject_even_of_one_prompt(serve, make):
    came, error = error_of(make(serve(*[{"status": 503}] * 9), tries=2))
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert not came


def test_nobody_there_ends_the_run_and_rejects_nothing(make, serve):
    server = serve()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    teacher = make(server, base_url=f"http://127.0.0.1:{port}/v1", tries=2)
    came, error = error_of(teacher, 3)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "Nobody is there" in str(error)
    assert not came
    assert teacher.usage()["calls"] == 2
    assert teacher.usage()["completion_tokens"] == 0


# ------------------------------------------------------------------------------------------------------ rate limits


def test_all_workers_wait_as_told(serve, make):
    server = serve({"status": 429, "headers": {"retry-after": "0.6"}}, slow=0.05)
    teacher = make(server, concurrency=4)
    assert all(answer.rejected is None for answer in asked(teacher, 12))
    at = [record["at"] for record in server.asked]
    quiet = max(later - earlier for earlier, later in itertools.pairwise(at))
    assert quiet >= 0.4  # from the last that was under way to the first after
    assert len(server.asked) == 13
    assert teacher.usage()["waited"] >= 0.59


def test_waiting_as_told_uses_up_no_try(serve, make):
    server = serve(*[{"status": 429, "headers": {"retry-after-ms": "10"}}, {}] * 3)
    assert all(answer.rejected is None for answer in asked(make(server, tries=1), 3))


@pytest.mark.parametrize("wait", ["0", "10"])
def test_waits_that_were_told_too_short_are_borne_for_a_while(serve, make, wait):
    server = serve(*[{"status": 429, "headers": {"retry-after-ms": wait}}] * 7)
    assert all(answer.rejected is None for answer in asked(make(server, tries=1), 2))
    assert len(server.asked) == 9


def test_a_service_that_only_says_429_is_left_after_as_long_as_a_prompt_may_wait(serve, make):
    server = serve(*[{"status": 429, "headers": {"retry-after-ms": "10"}}] * 999)
    came, error = error_of(make(server, tries=3, timeout=0.1), 5)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "429" in str(error)
    assert not came
    assert server.asked[-1]["at"] - server.asked[0]["at"] >= 0.3
    assert len(server.asked) >= 4


def test_a_wait_of_hours_ends_the_run_with_when_to_go_on(serve, make):
    server = serve({"status": 429, "headers": {"retry-after": "86400"}})
    _, error = error_of(make(server))
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "86,400 s" in str(error)


def test_a_quota_that_is_used_up_is_not_asked_again(serve, make):
    body = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
    server = serve({"status": 429, "body": body, "headers": {"retry-after": "1"}})
    _, error = error_of(make(server), 3)
    assert error.reason is Reason.TEACHER_REFUSED
    assert "You exceeded your current quota." in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("what", ["requests", "tokens"])
def test_what_is_left_of_a_rate_limit_is_kept_to(serve, make, what):
    headers = {f"x-ratelimit-remaining-{what}": "0", f"x-ratelimit-reset-{what}": "400ms"}
    server = serve({"status": 500, "headers": headers})
    asked(make(server), 2)
    at = [record["at"] for record in server.asked]
    assert at[1] - at[0] >= 0.39


def test_headers_that_tell_how_long():
    date = formatdate(time.time() + 3600, usegmt=True)
    here = formatdate(time.time() + 3590, usegmt=True)
    assert told_wait({"retry-after": "2"}) == 2
    assert told_wait({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert told_wait({"retry-after": date, "date": here}) == 10  # by the service's clock, not ours
    assert 3590 < told_wait({"retry-after": date}) <= 3600
    assert told_wait({"retry-after": "soon"}) is None
    assert told_wait({"retry-after": "-3"}) is None
    assert told_wait({}) is None
    found = {text: told_reset(text) for text in ("6m0s", "20ms", "1h2m3.5s", "12.5", "", "soon", "5 parsecs")}
    assert found == {
        "6m0s": 360,
        "20ms": 0.02,
        "1h2m3.5s": 3723.5,
        "12.5": 12.5,
        "": None,
        "soon": None,
        "5 parsecs": None,
    }


def test_workers_that_share_what_is_left_do_not_use_it_twice():
    async def go():
        gate, passed = Gate(Tally()), []
        gate.heard({"x-ratelimit-remaining-requests": "2", "x-ratelimit-reset-requests": "0.3"})
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def worker():
            await gate.passed(1, lambda: True)
            passed.append(loop.time() - began)

        await asyncio.gather(*(worker() for _ in range(4)))
        return sorted(passed)

    passed = ask(go())
    assert max(passed[:2]) < 0.29 <= min(passed[2:])


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_a_refusal_of_every_call_stops_at_once_with_the_services_words(serve, make, status):
    server = serve({"status": status, "body": {"error": {"message": "No such thing here."}}})
    came, error = error_of(make(server), 5)
    assert error.reason is Reason.TEACHER_REFUSED
    assert f"{status}: No such thing here." in str(error)
    assert error.problems[0].hint
    assert not came
    assert len(server.asked) == 1


TOO_LONG = {"error": {"message": "This model's maximum context length is 512 tokens.", "code": 400}}
POLICY = {"error": {"message": "Violates our usage policies.", "code": "content_policy_violation"}}
UNCLEAR = {"error": {"message": "Oh no.", "type": "invalid_request_error"}}


@pytest.mark.parametrize("body", [TOO_LONG, POLICY])
def test_a_refusal_of_one_prompt_rejects_that_prompt_alone(serve, make, body):
    server = serve({"status": 400, "body": body})
    first, second = asked(make(server), 2)
    assert first.rejected == f"failed: 400: {body['error']['message']}"
    assert second.rejected is None
    assert len(server.asked) == 2


def test_an_unclear_refusal_is_of_one_prompt_where_others_are_answered(serve, make):
    server = serve({"status": 400, "body": UNCLEAR}, {}, {"status": 422, "body": UNCLEAR})
    found = asked(make(server), 4)
    assert [answer.rejected for answer in found] == ["failed: 400: Oh no.", None, "failed: 422: Oh no.", None]
    assert len(server.asked) == 4


def test_an_unclear_refusal_is_of_all_where_none_is_answered(serve, make):
    server = serve(*[{"status": 400, "body": UNCLEAR}] * 99)
    came, error = error_of(make(server), 9)
    assert error.reason is Reason.TEACHER_REFUSED
    assert "Oh no." in str(error)
    assert not came
    assert len(server.asked) == 3


def test_a_parameter_that_is_not_known_stops_at_once(serve, make):
    body = {"error": {"message": "Unsupported value: 'temperature'.", "code": "unsupported_value"}}
    server = serve({"status": 400, "body": body})
    _, error = error_of(make(server), 9)
    assert error.reason is Reason.TEACHER_REFUSED
    assert len(server.asked) == 1


# ---------------------------------------------------------------------------------------------- many, and the end


def test_so_many_calls_are_under_way_as_the_config_says(serve, make):
    server = serve(slow=0.1)
    teacher = make(server, concurrency=3)

    async def twice():
        await asyncio.gather(*(answers(teacher, [TextPrompt(i, f"{k} {i}") for i in range(6)]) for k in "ab"))

    ask(twice())
    assert server.peak == 3


def test_closing_starts_no_further_call_and_keeps_what_was_paid_for(serve, make):
    server = serve(slow=0.2)
    teacher = make(server, concurrency=2)

    async def first():
        async with aclosing(teacher.complete(prompts(20), Sampling())) as given:
            async for _ in given:
                return

    ask(first())
    begun = len(server.asked)
    assert begun <= 4
    asked(teacher, 20)
    assert len(server.asked) == 20  # none of those begun before was asked again


def test_closing_does_not_wait_for_a_gate_that_is_shut(serve, make):
    server = serve({}, {"status": 429, "headers": {"retry-after": "600"}})
    teacher = make(server)

    async def first():
        async with aclosing(teacher.complete(prompts(3), Sampling())) as given:
            async for _ in given:
                while len(server.asked) < 2 or server.now:
                    await asyncio.sleep(0.02)
                return

    ask(asyncio.wait_for(first(), 60))
    assert len(server.asked) == 2


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(serve, make, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (answer,) = asked(make(serve()))
    assert answer.rejected is None


def test_an_error_of_ours_is_raised_and_not_swallowed(serve, make, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(desk.Caller, "call", broken)
    with pytest.raises(ZeroDivisionError):
        asked(make(serve()))
