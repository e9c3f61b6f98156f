"""A teacher's host with real worker processes: answers, cancels, turns, faults."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Sampling
from limbeck.recipe import Bound
from limbeck.service import host as host_module
from limbeck.service.process import WorkerProcess
from limbeck.signals.fragments import fragments
from limbeck.signals.messages import item_of, numbers, sampling_message, want_of
from limbeck.testing.teachers import ask, completions, scores
from limbeck.v1 import teacher_service_pb2 as pb

from .hosting import PATIENCE, TOP, Box, Make, bound, hosted, item, prompt, until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "SHORTEST_PAUSE", 0.05)


def in_process(teacher: Any, want: pb.Want, items: list[pb.ScoreItem]) -> dict[int, list[pb.Fragment]]:
    """What a teacher in this process says of one batch."""
    asked = [item_of(message, want_of(want)) for message in items]
    found = ask(scores(teacher, asked, want_of(want)))
    return {i.item_id: list(fragments(i, found[i.item_id], want_of(want), teacher.info())) for i in asked}


# --------------------------------------------------------------------------------------------------------- same numbers


def test_a_tiny_model_s_scores_texts_and_head_are_those_in_process_bit_for_bit(tiny_teacher: Path) -> None:
    teacher = bound("transformers", model=str(tiny_teacher), batch_tokens=64, device="cpu")
    here = teacher.make()
    want = pb.Want(top_k=8, temperatures=[1.0, 3.0], target=True, samples=5, layers=[0, -1], full=True, token_ids=True)
    lengths = {5: 20, 3: 7, 9: 33, 1: 12}
    items = [
        item(name, length, seed=name, token_ids=np.arange(2 * (length - 1), dtype="<i4").tobytes())
        for name, length in lengths.items()
    ]
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
    box, texts = Box(), Box()

    async def go() -> list[bytes]:
        async with hosted(teacher) as host:
            assert host.state == "ready"
            assert host.info == here.info()
            host.score("a", want, items, box, alone=True)
            host.generate("a", sampling_message(sampling), [prompt(7), prompt(2, 4)], texts)
            await box.told(4)
            await texts.told(2)
            return [response async for response in host.head()]

    head = [pb.GetOutputHeadResponse.FromString(response) for response in ask(go())]
    assert {name: box.fragments(name) for name in lengths} == in_process(here, want, items)
    prompts = [prompt(7), prompt(2, 4)]
    asked = [host_prompt(message) for message in prompts]
    written = ask(completions(here, asked, sampling))
    for name, answer in written.items():
        assert texts.completion(name).ids == answer.ids.astype("<i4").tobytes()
    ours = ask(here.output_head())
    assert head[0].head.bytes == ours.weight.nbytes
    assert b"".join(part.chunk.data for part in head[1:]) == ours.weight.tobytes()


def host_prompt(message: pb.Prompt) -> Any:
    from limbeck.interfaces import Prompt

    return Prompt(message.item_id, numbers(message.ids, "<i4", "ids"))


def test_items_of_clients_with_the_same_names_share_a_batch_and_get_their_own_answers(nursery: Make, diary) -> None:
    teacher = nursery(gated=True)
    first, boxes = Box(), {client: Box() for client in "abc"}
    items = {client: [item(name, 5 + place) for name in range(3)] for place, client in enumerate(boxes)}

    async def go() -> None:
        async with hosted(teacher) as host:
            for number in range(2):  # keeps the worker busy
                host.score("z", TOP, [item(90 + number)], first, alone=True)
            await until(lambda: diary.items() == [[90]])
            for client, box in boxes.items():
                host.score(client, TOP, items[client], box, alone=False)
            diary.open()
            for box in boxes.values():
                await box.told(3)
            assert host.lanes["score"].batches == 3

    ask(go())
    for client, box in boxes.items():
        expected = in_process(teacher.make(), TOP, items[client])
        assert {name: box.fragments(name) for name in range(3)} == expected


def test_draws_are_those_of_the_clients_own_names(nursery: Make) -> None:
    teacher = nursery()
    want = pb.Want(samples=9)
    boxes = {client: Box() for client in "ab"}
    items = [item(name, seed=4) for name in range(3)]
    sampling = Sampling(max_new_tokens=5, temperature=1.0, seed=1)
    texts = {client: Box() for client in "ab"}

    async def go() -> None:
        async with hosted(teacher) as host:
            for client in "ab":
                host.score(client, want, items, boxes[client], alone=False)
                host.generate(client, sampling_message(sampling), [prompt(name) for name in range(3)], texts[client])
            for box in (*boxes.values(), *texts.values()):
                await box.told(3)

    ask(go())
    expected = in_process(teacher.make(), want, items)
    written = ask(completions(teacher.make(), [host_prompt(prompt(name)) for name in range(3)], sampling))
    for client in "ab":
        assert {name: boxes[client].fragments(name) for name in range(3)} == expected
        for name, answer in written.items():
            assert texts[client].completion(name).ids == answer.ids.astype("<i4").tobytes()


def test_a_long_answer_comes_in_fragments_of_whole_rows(nursery: Make) -> None:
    teacher, box = nursery(vocab_size=20_000), Box()
    want = pb.Want(full=True)

    async def go() -> None:
        async with hosted(teacher) as host:
            host.score("a", want, [item(1, 60)], box, alone=False)
            await box.told(1)

    ask(go())
    assert len(box.parts[1]) > 3
    assert box.fragments(1) == in_process(teacher.make(), want, [item(1, 60)])[1]


def test_a_teacher_without_a_head_says_so(nursery: Make) -> None:
    async def go() -> None:
        async with hosted(nursery()) as host:
            with pytest.raises(LimbeckError) as caught:
                [response async for response in host.head()]
            assert caught.value.reason is Reason.CAPABILITY_MISSING

    ask(go())


# -------------------------------------------------------------------------------------------------------------- cancels


def test_a_cancelled_item_stops_its_batch_and_the_worker_goes_on(nursery: Make, diary) -> None:
    gone, kept = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            host.score("a", TOP, [item(1), item(2)], gone, alone=False)
            await until(diary.items)
            host.cancel(gone, [1])
            host.cancel(gone)
            await until(lambda: diary.all("cancelled"))
            diary.open()
            host.score("b", TOP, [item(1)], kept, alone=False)
            await kept.told(1)
            assert host.restarts == 0

    ask(go())
    assert (gone.parts, gone.failures, kept.complete) == ({}, {}, [1])


def test_a_batch_goes_on_for_those_who_still_wait(nursery: Make, diary) -> None:
    gone, kept = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            host.score("a", TOP, [item(1)], gone, alone=False)
            host.score("b", TOP, [item(2)], kept, alone=False)
            await until(diary.items)
            host.cancel(gone, [1, 77])
            diary.open()
            await kept.told(1)

    ask(go())
    assert diary.items() == [[1, 2]]
    assert (gone.parts, gone.failures, kept.complete) == ({}, {}, [2])


def test_what_is_cancelled_before_its_turn_is_not_computed_and_its_name_is_free(nursery: Make, diary) -> None:
    box, others = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            for name in (90, 91):
                host.score("z", TOP, [item(name)], others, alone=True)
            await until(lambda: diary.items() == [[90]])
            host.score("a", TOP, [item(1), item(2)], box, alone=False)
            host.score("a", TOP, [item(3), item(4)], box, alone=True)
            await asyncio.sleep(0)
            host.cancel(box, [1, 3, 4])
            host.score("a", TOP, [item(1)], box, alone=True)
            diary.open()
            await box.told(2)
            assert host.lanes["score"].waiting == 0

    ask(go())
    assert sorted(map(tuple, diary.items()[2:])) == [(1,), (2,)]
    assert sorted(box.complete) == [1, 2]


# ---------------------------------------------------------------------------------------------------------------- turns


def test_a_greedy_client_does_not_starve_another(nursery: Make, diary) -> None:
    greedy, small = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(gated=True), batch_tokens=60) as host:
            host.score("greedy", TOP, [item(name, 10) for name in range(300)], greedy, alone=False)
            await until(diary.items)
            host.score("small", TOP, [item(name, 10) for name in range(1000, 1006)], small, alone=False)
            diary.open()
            await small.told(6)
            assert len(greedy.complete) < 60
            await greedy.told(300)

    ask(go())


def test_batches_are_as_large_as_the_teacher_s_own_setting_says(tiny_teacher: Path) -> None:
    def largest(teacher: Bound, **more: int) -> int:
        host = host_module.TeacherHost("x", teacher, log=logging.getLogger("x"), **more)
        lane = host.lanes["score"]
        lane.add("a", TOP, [item(name, 100) for name in range(1000)], Box())
        return len(lane.next_call()[0].score.items)

    assert largest(bound("transformers", model=str(tiny_teacher), batch_tokens=20_000)) == 200
    assert largest(bound("echo", tokenizer="")) == host_module.BATCH_TOKENS // 100
    assert largest(bound("echo", tokenizer=""), batch_tokens=300) == 3


def test_texts_and_scores_do_not_wait_for_each_other(nursery: Make, diary) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            host.score("a", TOP, [item(1)], box, alone=False)
            host.generate("a", pb.Sampling(max_new_tokens=2), [prompt(2)], box)
            await until(lambda: diary.items() and diary.items("generate"))
            diary.open()
            await box.told(2)

    ask(go())


# --------------------------------------------------------------------------------------------------------------- faults


def test_one_bad_item_of_a_shared_batch_fails_alone(nursery: Make, diary) -> None:
    good, bad = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(poison=[5])) as host:
            host.score("good", TOP, [item(name) for name in range(3)], good, alone=False)
            host.score("bad", TOP, [item(5)], bad, alone=False)
            await good.told(3)
            await bad.told(1)

    ask(go())
    assert diary.items()[0] == [0, 5, 1, 2]
    assert sorted(good.complete) == [0, 1, 2]
    assert (bad.failures[5].reason, bad.failures[5].problems[0].field) == (Reason.SCORING_FAILED, "item 5")


def test_a_bad_item_fails_all_of_a_batch_that_is_not_to_be_taken_apart(nursery: Make, diary) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(poison=[5])) as host:
            host.score("a", TOP, [item(4), item(5)], box, alone=True)
            await box.told(2)

    ask(go())
    assert diary.items() == [[4, 5]]
    assert {problem.field for problem in box.failures[4].problems} == {"item 5"}


def test_a_teacher_that_does_not_recover_from_an_error_is_started_again(nursery: Make, diary) -> None:
    box, again = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(poison=[5], loses_gpu=True)) as host:
            host.score("a", TOP, [item(4), item(5)], box, alone=False)
            await box.told(2)
            await host.wait_ready()
            host.score("a", TOP, [item(4)], again, alone=False)
            await again.told(1)
            assert host.restarts == 1

    ask(go())
    assert {error.reason for error in box.failures.values()} == {Reason.TEACHER_UNAVAILABLE}
    assert again.complete == [4]


def test_bytes_that_are_no_ids_are_an_error_of_the_item(nursery: Make) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery()) as host:
            host.score("a", TOP, [pb.ScoreItem(item_id=1, ids=b"abc", n=1)], box, alone=False)
            host.score("a", TOP, [item(2)], box, alone=False)
            await box.told(2)
            assert host.restarts == 0

    ask(go())
    assert (box.failures[1].reason, box.complete) == (Reason.REQUEST_INVALID, [2])


def test_a_worker_that_says_what_cannot_be_is_replaced(nursery: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with hosted(nursery()) as host:
            with monkeypatch.context() as patch:
                patch.setattr(host, "_hear", lambda message: 1 / 0)
                box = Box()
                host.score("a", TOP, [item(1)], box, alone=False)
                await box.told(1)
            await host.wait_ready()
            host.score("a", TOP, [item(2)], box, alone=False)
            await box.told(2)
            assert box.complete == [2]

    ask(go())


def test_a_process_that_cannot_be_started_is_an_error_and_is_tried_again(
    nursery: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = WorkerProcess.start, []

    async def start(*arguments: Any) -> WorkerProcess:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(11, "Resource temporarily unavailable")
        return await real(*arguments)

    monkeypatch.setattr(WorkerProcess, "start", start)

    async def go() -> None:
        async with hosted(nursery()) as host:
            assert "Resource temporarily unavailable" in host.message.error.problems[0].message
            async with asyncio.timeout(PATIENCE):
                await until(lambda: host.state == "ready")

    ask(go())
