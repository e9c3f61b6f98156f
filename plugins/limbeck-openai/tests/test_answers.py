"""What is read out of answers, by every api, whole and streamed."""

import json

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextPrompt, TextToken
from limbeck.testing.text_teachers import answers, ask

APIS = pytest.mark.parametrize("api", ["chat", "responses", "completions"])
WHOLE_OR_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def asked(teacher, count=1, sampling=None):
    """The answers to so many prompts, in their order."""
    found = ask(answers(teacher, [TextPrompt(i, f"prompt {i}") for i in range(count)], sampling or Sampling()))
    return [found[i] for i in range(count)]


def ended(api, how):
    """A step that ends an answer like chat's finish_reason `how`."""
    if api != "responses" or how == "stop":
        return {"finish": how}
    reason = {"length": "max_output_tokens"}.get(how, how)
    return {"response": {"status": "incomplete", "incomplete_details": {"reason": reason}}}


@APIS
@WHOLE_OR_STREAMED
class TestEveryApi:
    def test_a_good_answer(self, serve, make, api, stream):
        (answer,) = asked(make(serve({"text": "Où ? 🜁"}), api=api, stream=stream))
        assert (answer.text, answer.finish_reason, answer.rejected, answer.tokens) == ("Où ? 🜁", "stop", None, None)
        assert answer.lineage["model"] == "small"
        assert answer.lineage["prompt_tokens"] == 10
        assert answer.lineage["completion_tokens"] == 5

    def test_one_cut_by_the_limit_is_kept_and_marked(self, serve, make, api, stream):
        (answer,) = asked(make(serve(ended(api, "length")), api=api, stream=stream))
        assert (answer.finish_reason, answer.rejected) == ("length", None)
        assert answer.text == "echo prompt 0"

    def test_a_filtered_one_is_rejected(self, serve, make, api, stream):
        server = serve(ended(api, "content_filter"))
        (answer,) = asked(make(server, api=api, stream=stream))
        assert answer.rejected == "content_filter"
        assert len(server.asked) == 1

    @pytest.mark.parametrize(("text", "reason"), [("", "empty"), (" \n", "whitespace")])
    def test_an_empty_one_is_rejected(self, serve, make, api, stream, text, reason):
        server = serve({"text": text})
        (answer,) = asked(make(server, api=api, stream=stream))
        assert answer.rejected == reason
        assert len(server.asked) == 1

    def test_likeliest_tokens(self, serve, make, api, stream):
        (answer,) = asked(make(serve({"text": "Où ? 🜁"}), api=api, stream=stream, logprobs=3), 1, Sampling(logprobs=2))
        assert [token.text.decode() for token in answer.tokens] == ["Où ", "? ", "🜁"]
        if api != "responses" or not stream:
            assert answer.tokens[0] == TextToken("Où ".encode(), -0.5, (("Où ".encode(), -0.5), (b"other0", -2.0)))

    def test_an_endpoint_that_tells_none_though_asked_is_an_error_that_says_so(self, serve, make, api, stream):
        server = serve({"logprobs": None})
        with pytest.raises(LimbeckError) as caught:
            asked(make(server, api=api, stream=stream, logprobs=3), 2, Sampling(logprobs=2))
        assert caught.value.reason is Reason.TEACHER_REFUSED
        assert "logprobs: 0" in str(caught.value)
        assert len(server.asked) == 1

    def test_duplicate_ids_do_no_harm(self, serve, make, api, stream):
        given = asked(make(serve(*[{"id": "same"}] * 3), api=api, stream=stream), 3)
        assert [answer.text for answer in given] == ["echo prompt 0", "echo prompt 1", "echo prompt 2"]

    def test_another_models_answer_stops_at_once(self, serve, make, api, stream):
        server = serve({}, {"model": "small-mini"})
        with pytest.raises(LimbeckError) as caught:
            asked(make(server, api=api, stream=stream), 5)
        assert caught.value.reason is Reason.TEACHER_MISMATCH
        assert "small-mini" in str(caught.value)
        assert "served_as" in str(caught.value)
        assert len(server.asked) == 2


@WHOLE_OR_STREAMED
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"message": {"content": None, "refusal": "I can't help with that."}}, "refused"),
        ({"message": {"content": None}, "finish": "content_filter"}, "content_filter"),
        ({"message": {"content": "half"}, "finish": "content_filter"}, "content_filter"),
        ({"message": {"content": None, "tool_calls": [{"id": "c"}]}, "finish": "tool_calls"}, "tool_calls"),
        ({"message": {"content": None, "tool_calls": [{"id": "c"}]}}, "tool_calls"),
        ({"message": {"content": None, "function_call": {"name": "f"}}}, "tool_calls"),
        ({"finish": "recitation"}, "failed: finish_reason 'recitation'"),
    ],
)
def test_chat_answers_that_must_not_be_trained_are_paid_for_once(serve, make, step, reason, stream):
    server = serve(step)
    (answer,) = asked(make(server, stream=stream))
    assert answer.rejected == reason
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}], "refused"),
        ([{"type": "function_call", "name": "f", "arguments": "{}"}], "tool_calls"),
        ([], "empty"),
    ],
)
def test_responses_that_must_not_be_trained(serve, make, output, reason):
    (answer,) = asked(make(serve({"response": {"output": output}}), api="responses"))
    assert answer.rejected == reason


@APIS
@pytest.mark.parametrize("finish", [None, "", "error", "abort"])
def test_an_answer_that_was_broken_off_is_asked_again_and_never_kept(serve, make, finish, api):
    step = {"response": {"status": "failed"}} if api == "responses" else {"finish": finish}
    server = serve({"text": "half", **step})
    teacher = make(server, api=api)
    (answer,) = asked(teacher)
    assert answer.text == "echo prompt 0"
    assert len(server.asked) == 2
    assert teacher.usage()["retries"] == 1
    assert teacher.usage()["completion_tokens"] == 10  # it was paid for all the same


@WHOLE_OR_STREAMED
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_reasoning_text_goes_before_the_answer_in_its_tag(serve, make, field, stream):
    server = serve(*[{"message": {field: "Because of 2."}, "text": "4"}] * 2)
    (tagged,) = asked(make(server, stream=stream, reasoning_tag="think"))
    (plain,) = asked(make(server, stream=stream))
    assert tagged.text == "<think>Because of 2.</think>4"
    assert plain.text == "4"
    assert len(server.asked) == 1  # the same answer: the tag is no part of the question


def test_a_summary_of_responses_is_a_reasoning_text(serve, make):
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Two"}, {"text": "steps."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "4"}]},
    ]
    (answer,) = asked(make(serve({"response": {"output": output}}), api="responses", reasoning_tag="why"))
    assert answer.text == "<why>Two\nsteps.</why>4"


def test_a_reasoning_without_an_answer_is_empty(serve, make):
    step = {"message": {"reasoning": "Hm."}, "text": "", "finish": "length"}
    (answer,) = asked(make(serve(step), reasoning_tag="think"))
    assert answer.rejected == "empty"


def told(text, logprob, *top):
    entry = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
    return {**entry, "top_logprobs": [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top]}


def test_an_end_token_that_is_told_of_has_no_bytes(serve, make):
    logprobs = [told("hi", -0.1, ("hi", -0.1)), told("<eos>", -7.5, ("<eos>", -7.5), ("\n", -1.4))]
    (answer,) = asked(make(serve({"text": "hi", "logprobs": logprobs}), logprobs=2), 1, Sampling(logprobs=2))
    assert answer.tokens == (
        TextToken(b"hi", -0.1, ((b"hi", -0.1),)),
        TextToken(b"", -7.5, ((b"\n", -1.4), (b"<eos>", -7.5))),
    )


def test_pieces_of_a_character_make_the_text_and_name_no_token(serve, make):
    logprobs = [told("", -0.2, ("", -0.2), ("a", -3.0), ("", -4.0)), told("🜁", -0.1, ("🜁", -0.1))]
    (answer,) = asked(make(serve({"text": "🜁", "logprobs": logprobs}), logprobs=3), 1, Sampling(logprobs=3))
    assert [token.text for token in answer.tokens] == [b"", "🜁".encode()]
    assert answer.tokens[0].top == ((b"a", -3.0),)


def test_tokens_that_do_not_make_the_text_are_left_out_and_that_is_told(serve, make):
    logprobs = [told("ho", -0.1, ("ho", -0.1))]
    (answer,) = asked(make(serve({"text": "hi", "logprobs": logprobs}), logprobs=2), 1, Sampling(logprobs=2))
    assert (answer.text, answer.rejected, answer.tokens) == ("hi", None, None)
    assert answer.lineage["tokens"] == "do not make the text"


def test_bytes_of_the_old_completions_api(serve, make):
    logprobs = {
        "tokens": ["bytes:\\xf0\\x9f", "bytes:\\x9c\\x81", " a"],
        "token_logprobs": [-0.1, -0.2, -0.3],
        "top_logprobs": [{"bytes:\\xf0\\x9f": -0.1}, {"bytes:\\x9c\\x81": -0.2}, {" a": -0.3, " b": -1.0}],
    }
    teacher = make(serve({"text": "🜁 a", "logprobs": logprobs}), logprobs=2, api="completions")
    (answer,) = asked(teacher, 1, Sampling(logprobs=2))
    assert [token.text for token in answer.tokens] == [b"\xf0\x9f", b"\x9c\x81", b" a"]


def test_a_text_in_parts_is_put_together(serve, make):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    parts = [thought, {"type": "text", "text": "One "}, {"type": "text", "text": "two."}]
    (answer,) = asked(make(serve({"message": {"content": parts}})))
    assert (answer.text, answer.rejected) == ("One two.", None)


def test_a_character_that_a_stream_cut_in_two_is_put_together(serve, make):
    halves = [{"index": 0, "delta": {"content": half}} for half in ("a\ud83c", "\udf41b")]
    halves[-1]["finish_reason"] = "stop"
    body = "".join(f"data: {json.dumps({'model': 'small', 'choices': [half]})}\n\n" for half in halves)
    server = serve({"status": 200, "body": body, "headers": {"content-type": "text/event-stream"}})
    assert asked(make(server, stream=True))[0].text == "a🍁b"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": "3", "completion_tokens": "4"},
        {"prompt_tokens": -1, "completion_tokens": 4},
        {"prompt_tokens": 10**30, "completion_tokens": 4},
    ],
)
def test_an_answer_without_a_usable_usage_counts_as_the_most_that_it_may_be(serve, make, usage):
    teacher = make(serve({"usage": usage}), price={"input": 0.0, "output": 1e6})
    asked(teacher, 1, Sampling(max_new_tokens=9))
    usage = teacher.usage()
    assert (usage["unmetered"], usage["completion_tokens"], usage["cost"]) == (1, 9, 9.0)


@WHOLE_OR_STREAMED
def test_an_error_inside_an_answer_with_status_200_is_an_error(serve, make, stream):
    body = {"error": {"message": "The engine is overloaded.", "code": 503}}
    server = serve({"status": 200, "body": body})
    (answer,) = asked(make(server, stream=stream))
    assert answer.rejected is None
    assert len(server.asked) == 2
