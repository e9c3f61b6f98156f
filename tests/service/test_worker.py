"""The worker's side of a link, in this process: what it asks of teachers, and what it makes of odd ones."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from limbeck.interfaces import CAPABILITIES, Completion, TeacherInfo
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.service.link import Link
from limbeck.service.worker import Worker, ask_little
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK
from limbeck.signals.fragments import bfloat16_bytes
from limbeck.teachers.requests import check_prompts, check_score
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

from .hosting import item, prompt

INFO = TeacherInfo(
    name="odd",
    vocab_size=300,
    tokenizer_digest="a" * 64,
    template_digest=None,
    weights_digest="b" * 64,
    max_length=100,
    capabilities=frozenset(CAPABILITIES),
    eos_ids=(1,),
    hidden_size=3,
    num_layers=2,
)
TARGET = pb.Want(target=True)


class Plain:
    """Answers with made-up numbers what a teacher of its capabilities may be asked, and writes down what it was."""

    def __init__(self, info: TeacherInfo = INFO) -> None:
        self._info = info
        self.asked: list[Any] = []

    def info(self):
        return self._info

    async def close(self):
        pass

    def score(self, items, want):
        check_score(self._info, items, want)
        self.asked.append([one.item_id for one in items])
        return self.answers([(one.item_id, self.signal(one, want)) for one in items])

    def generate(self, prompts, sampling):
        check_prompts(self._info, prompts, sampling)
        self.asked.append([one.item_id for one in prompts])
        return self.answers([Completion(one.item_id, np.array([7], np.int32), "stop") for one in prompts])

    async def answers(self, found):
        for answer in found:
            await asyncio.sleep(0)
            yield answer

    def signal(self, one, want):
        n, v = one.n, self._info.vocab_size
        full = np.full((n, v), -np.log(v), np.float32)
        ids = np.tile(np.arange(want.top_k), (n, 1))
        tails = np.full((n, len(want.temperatures)), np.log1p(-want.top_k / v))
        return Signal(
            one.first_row,
            n,
            top_k=TopK.from_logprobs(ids, full[:, : want.top_k], tails, want.temperatures) if want.top_k else None,
            target=full[:, 0] if want.target else None,
            token_ids=TokenLogprobs(one.token_ids, full[:, :1], None) if want.token_ids else None,
            samples=Samples(ids, ids, full[:, : want.samples]) if want.samples else None,
            hidden={layer: np.full((n, 3), 1 / 3, np.float32) for layer in want.layers},
            full=full if want.full else None,
        )


@asynccontextmanager
async def working(teacher: Any) -> AsyncIterator[Link]:
    """A worker on this loop; the other end of its link."""
    ours, theirs = [await Link.of(end) for end in socket.socketpair()]
    task = asyncio.ensure_future(Worker(theirs, teacher, teacher.info()).run())
    try:
        yield ours
    finally:
        await ours.close()
        await task
        await theirs.close()


def score(call: int, items: list[pb.ScoreItem], want: pb.Want = TARGET) -> internal.ToWorker:
    return internal.ToWorker(score=internal.ScoreCall(call=call, want=want, items=items))


async def replies(link: Link, calls: int = 1) -> tuple[list[internal.Answer], list[internal.CallDone]]:
    """Everything up to the end of so many calls."""
    answers, ends = [], []
    async with asyncio.timeout(30):
        while len(ends) < calls:
            message = await link.receive(internal.FromWorker)
            assert message is not None
            if message.HasField("answer"):
                answers.append(message.answer)
            else:
                ends.append(message.done)
    return answers, ends


def told(teacher: Any, *frames: internal.ToWorker) -> tuple[list[internal.Answer], list[internal.CallDone]]:
    async def go() -> tuple[list[internal.Answer], list[internal.CallDone]]:
        async with working(teacher) as link:
            for frame in frames:
                link.post(frame)
            return await replies(link, sum(frame.WhichOneof("kind") != "cancel" for frame in frames))

    return asyncio.run(go())


def twice(answers: list[Any]) -> list[Any]:
    return [answers[0], *answers]


def strange(answers: list[Any]) -> list[Any]:
    return [(99, answers[0][1]), *answers]


def short(answers: list[Any]) -> list[Any]:
    return answers[:-1]


def shifted(answers: list[Any]) -> list[Any]:
    return [(name, replace(signal, first_row=signal.first_row + 1)) for name, signal in answers]


@pytest.mark.parametrize(
    ("odd", "said"),
    [(twice, "item 1"), (strange, "item 99"), (short, "1 items not scored"), (shifted, "rows 1 and 5 on came")],
)
def test_a_teacher_that_answers_what_was_not_asked_is_an_error(odd: Callable[[Any], Any], said: str) -> None:
    class Odd(Plain):
        async def answers(self, found):
            async for answer in super().answers(odd(found) if len(found) > 1 else found):
                yield answer

    _, (end,) = told(Odd(), score(1, [item(1), item(2)]))
    assert end.error.reason == "SIGNAL_INVALID"
    assert said in end.error.problems[0].message


def test_an_exception_of_a_teacher_is_told_without_its_text_and_goes_to_the_log(capsys) -> None:
    class Odd(Plain):
        def signal(self, one, want):
            if one.n > 1:
                raise RuntimeError("/secret/place")
            return super().signal(one, want)

    _, (end,) = told(Odd(), score(1, [item(1)]))
    assert end.error.reason == "INTERNAL"
    assert "secret" not in str(end.error)
    assert "/secret/place" in capsys.readouterr().err


def test_a_call_that_is_cancelled_before_its_turn_is_not_asked() -> None:
    teacher = Plain()
    cancel = internal.ToWorker(cancel=internal.CancelItems(call=2, places=[0, 1]))
    answers, ends = told(teacher, score(1, [item(1)]), score(2, [item(2), item(3)]), cancel)
    assert [end.call for end in ends] == [1, 2]
    assert not any(end.HasField("error") for end in ends)
    assert teacher.asked == [[1]]
    assert [answer.call for answer in answers] == [1]


def test_answers_name_the_place_and_carry_the_clients_name() -> None:
    teacher = Plain()
    answers, _ = told(teacher, score(1, [item(5), item(5), item(6)]))
    assert [answer.place for answer in answers] == [0, 1, 2]
    assert [pb.ScoreResponse.FromString(answer.response).fragment.item_id for answer in answers] == [5, 5, 6]
    assert teacher.asked == [[0, 1, 2]]


def test_texts_of_clients_with_the_same_names_are_told_apart() -> None:
    frame = internal.ToWorker(
        generate=internal.GenerateCall(call=1, sampling=pb.Sampling(max_new_tokens=1), prompts=[prompt(5), prompt(5)])
    )
    answers, _ = told(Plain(), frame)
    assert [(answer.place, answer.last) for answer in answers] == [(0, True), (1, True)]
    completion = pb.GenerateResponse.FromString(answers[1].response).completion
    assert (completion.item_id, completion.finish_reason) == (5, pb.Completion.FINISH_REASON_STOP)


def test_hidden_states_are_sent_as_asked() -> None:
    want = pb.Want(layers=[-1], hidden_dtype=signal_pb2.DTYPE_BFLOAT16)
    ((answer,), _) = told(Plain(), score(1, [item(1, 3)], want))
    (hidden,) = pb.ScoreResponse.FromString(answer.response).fragment.hidden
    assert hidden.dtype == signal_pb2.DTYPE_BFLOAT16
    assert hidden.values == bfloat16_bytes(np.full((2, 3), 1 / 3, np.float32))
    assert answer.cost == len(hidden.values)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("temperatures", [None, (2.0,)])
def test_a_teacher_is_first_asked_something_that_it_can_answer(capability: str, temperatures) -> None:
    with_it = {"generate_top_k": {"generate"}}.get(capability, set())
    teacher = Plain(replace(INFO, capabilities=frozenset({capability} | with_it), temperatures=temperatures))
    asyncio.run(ask_little(teacher, teacher.info()))
    assert teacher.asked == [[0]]


def test_neither_side_of_the_link_imports_torch() -> None:
    code = (
        "import sys, limbeck.service.host, limbeck.service.worker\n"
        "sys.exit(str({'torch', 'transformers'} & sys.modules.keys() or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
