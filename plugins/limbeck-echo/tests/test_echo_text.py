"""The teacher `echo-text` is a teacher that is asked with text, is deterministic, and plays price and refusals."""

import asyncio

import pytest

from limbeck.interfaces import Sampling, TextPrompt, TextTeacher
from limbeck.testing.text_teachers import TextTeacherConformance, answers, ask
from limbeck_echo.config import EchoTextConfig
from limbeck_echo.text import EchoTextTeacher

PROMPT = TextPrompt(3, "one two three four five six")


class TestEchoText(TextTeacherConformance):
    @pytest.fixture
    def teacher(self) -> TextTeacher:
        return EchoTextTeacher(EchoTextConfig(price=[1.0, 2.0]))


class TestEchoTextWithoutPrice(TextTeacherConformance):
    @pytest.fixture
    def teacher(self) -> TextTeacher:
        return EchoTextTeacher(EchoTextConfig())


def test_its_answers_never_change():
    assert ask(answers(EchoTextTeacher(EchoTextConfig()), [PROMPT]))[3].text == "three four three two three five five"


def test_another_seed_is_another_model_with_other_answers():
    one, two = (EchoTextTeacher(EchoTextConfig(seed=seed)) for seed in (0, 1))
    assert one.info().digest != two.info().digest
    assert ask(answers(one, [PROMPT]))[3].text != ask(answers(two, [PROMPT]))[3].text


def test_a_draw_depends_on_seed_and_item():
    teacher = EchoTextTeacher(EchoTextConfig())
    asked = [PROMPT, TextPrompt(4, PROMPT.prompt)]
    drawn, again, other = (ask(answers(teacher, asked, Sampling(temperature=1.0, seed=seed))) for seed in (0, 0, 1))
    assert drawn == again
    assert drawn[3].text != drawn[4].text
    assert drawn[3].text != other[3].text


def test_a_long_answer_is_cut_and_says_so():
    (answer,) = ask(answers(EchoTextTeacher(EchoTextConfig()), [PROMPT], Sampling(max_new_tokens=2))).values()
    assert answer.finish_reason == "length"
    assert len(answer.text.split()) == 2


def test_prompts_with_a_word_are_refused_and_paid_for():
    teacher = EchoTextTeacher(EchoTextConfig(refuses=["three"], price=[1e6, 0]))
    assert ask(answers(teacher, [PROMPT]))[3].rejected == "refused"
    assert teacher.usage()["cost"] == pytest.approx(6.0)


def test_an_answer_takes_the_time_that_is_told(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    ask(answers(EchoTextTeacher(EchoTextConfig(delay=0.5)), [PROMPT]))
    assert slept == [0.5]
