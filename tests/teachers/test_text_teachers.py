"""Teachers that are asked with text, as generators see them; the scripted one for tests is such a teacher."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt, TextTeacher, TextToken
from limbeck.teachers.answers import Answers
from limbeck.teachers.text import ApiText
from limbeck.testing.text_teachers import ScriptedTextTeacher, TextTeacherConformance


class TestScripted(TextTeacherConformance):
    @pytest.fixture
    def teacher(self) -> TextTeacher:
        return ScriptedTextTeacher("one", "two", TextCompletion(0, "", "stop", "refused"))


def complete(teacher, path, prompts, first_id=0, sampling=None, take=None, again=False):
    async def call():
        found = []
        with Answers(path, again=again) as answers:
            async with aclosing(
                ApiText(teacher, answers, tokenizer=None).complete(prompts, sampling or Sampling(), first_id)
            ) as given:
                async for written in given:
                    found.append(written)
                    if len(found) == take:
                        break
        return found

    return asyncio.run(call())


def test_answers_carry_what_the_service_said_and_why_one_is_rejected(tmp_path):
    teacher = ScriptedTextTeacher("fine", TextCompletion(0, "no", "stop", "refused", lineage={"model": "m-2"}))
    refused, fine = complete(teacher, tmp_path / "a.jsonl", ["x", "y"])
    assert (refused.place, refused.rejected, refused.lineage) == (1, "refused", {"answer": {"model": "m-2"}})
    assert (fine.text, fine.rejected, fine.lineage["answer"]["completion_tokens"]) == ("fine", None, 5)


def test_no_answer_is_paid_for_twice(tmp_path):
    teacher, path = ScriptedTextTeacher("a", "b", "c", "d"), tmp_path / "a.jsonl"
    complete(teacher, path, ["w", "x", "y", "z"], take=2)
    assert teacher.asked == [3, 2]
    found = complete(teacher, path, ["w", "x", "y", "z"])
    assert sorted(teacher.asked) == [0, 1, 2, 3]
    assert {written.place: written.text for written in found} == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_another_prompt_item_or_sampling_is_another_question(tmp_path):
    teacher, path = ScriptedTextTeacher("a"), tmp_path / "a.jsonl"
    drawn = Sampling(temperature=1.0)
    changes = ({}, {"prompts": ["y"]}, {"first_id": 1}, {"sampling": replace(drawn, seed=1)}, {"sampling": Sampling()})
    for changed in changes:
        complete(teacher, path, **{"prompts": ["x"], "sampling": drawn, **changed})
    assert len(teacher.asked) == 5
    for changed in changes:
        complete(teacher, path, **{"prompts": ["x"], "sampling": drawn, **changed})
    assert len(teacher.asked) == 5


def test_a_greedy_answer_is_the_same_at_any_place(tmp_path):
    teacher, path = ScriptedTextTeacher("a"), tmp_path / "a.jsonl"
    complete(teacher, path, ["x"])
    (written,) = complete(teacher, path, ["x"], first_id=7, sampling=Sampling(seed=3))
    assert (written.place, written.text) == (0, "a")
    assert teacher.asked == [0]


def test_what_failed_is_asked_again_where_that_is_wanted(tmp_path):
    failed, refused = (TextCompletion(0, "", "stop", reason) for reason in ("failed: 500", "refused"))
    teacher, path = ScriptedTextTeacher(failed, refused, "c"), tmp_path / "a.jsonl"
    complete(teacher, path, ["x", "y", "z"])
    complete(teacher, path, ["x", "y", "z"])
    assert teacher.asked == [2, 1, 0]
    complete(teacher, path, ["x", "y", "z"], again=True)
    assert teacher.asked == [2, 1, 0, 0]


def test_an_error_keeps_what_came_before_it(tmp_path):
    gone = LimbeckError(Reason.SERVER_UNAVAILABLE)
    teacher, path = ScriptedTextTeacher(gone, "b", "c"), tmp_path / "a.jsonl"
    with pytest.raises(LimbeckError):
        complete(teacher, path, ["x", "y", "z"])
    assert teacher.asked == [2, 1]
    assert len(complete(teacher, path, ["x", "y", "z"])) == 3
    assert teacher.asked == [2, 1, 0]


def test_an_answer_with_more_likeliest_tokens_serves_where_fewer_are_asked(tmp_path):
    prompt, path = TextPrompt(0, "x"), tmp_path / "a.jsonl"
    with Answers(path) as answers:
        answers.add(prompt, Sampling(logprobs=5), TextCompletion(0, "a", "stop", lineage={"prompt_tokens": 3}))
    with Answers(path) as answers:
        assert all(answers.get(prompt, Sampling(logprobs=k)) for k in (0, 4, 5))
        assert answers.get(prompt, Sampling(logprobs=6)) is None
        answers.add(prompt, Sampling(logprobs=6), TextCompletion(0, "b", "stop"))
        assert {answers.get(prompt, Sampling(logprobs=k)).text for k in (0, 5, 6)} == {"b"}
        assert list(answers.tokens) == [(3, 0), (0, 0)]


def test_kept_answers_come_back_with_everything(tmp_path):
    tokens = (TextToken(b"\xc3", -0.5, ((b"\xc3", -0.5), (b" a", -1.5))), TextToken(b"\xa9", 0.0, ()))
    answer = TextCompletion(0, "é", "length", None, tokens, {"model": "m", "prompt_tokens": 3})
    question, path = (TextPrompt(0, "x"), Sampling(logprobs=2)), tmp_path / "a.jsonl"
    with Answers(path) as answers:
        answers.add(*question, answer)
        assert answers.get(*question) == answer
    whole = path.read_text()
    path.write_text(f"{whole}{whole[:40]}")  # a crash cut the second one
    with Answers(path) as answers:
        assert answers.repaired
        assert answers.get(*question) == answer
        answers.add(TextPrompt(0, "y"), Sampling(), replace(answer, text="other"))
        assert answers.get(*question) == answer
    with Answers(path) as answers:
        assert answers.get(TextPrompt(0, "y"), Sampling()).text == "other"
