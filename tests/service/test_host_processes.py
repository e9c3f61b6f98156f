"""A teacher's host with real worker processes: their deaths, and their starts."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.hosting import kin as kin_module
from limbeck.service import host as host_module
from limbeck.service import lane as lane_module
from limbeck.testing.teachers import ask
from limbeck.v1 import teacher_service_pb2 as pb

from .hosting import TOP, Box, Make, alive, bound, hosted, item, prompt, until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "SHORTEST_PAUSE", 0.05)


# --------------------------------------------------------------------------------------------------------------- deaths


def test_a_worker_killed_mid_batch_fails_its_items_leaves_no_child_and_is_started_again(nursery: Make, diary) -> None:
    box, again = Box(), Box()

    async def go() -> None:
        async with hosted(nursery(gated=True, child=True)) as host:
            worker, child = diary.pid(), diary.pid("child")
            host.score("a", TOP, [item(1), item(2)], box, alone=False)
            host.generate("b", pb.Sampling(max_new_tokens=2), [prompt(3)], box)
            await until(lambda: diary.items() and diary.items("generate"))
            assert alive(child)
            diary.kill(signal.SIGKILL)
            await box.told(3)
            assert {str(error.reason) for error in box.failures.values()} == {"TEACHER_UNAVAILABLE"}
            assert "SIGKILL" in str(box.failures[1])
            await until(lambda: not alive(child))
            assert not alive(worker)
            await host.wait_ready()
            assert (host.restarts, diary.pid() != worker) == (1, True)
            diary.open()
            host.score("a", TOP, [item(1), item(2)], again, alone=False)
            await again.told(2)
            assert sorted(again.complete) == [1, 2]
        await until(lambda: not alive(diary.pid("child")))

    ask(go())
    assert len(diary.all("child")) == 2


def test_what_waits_while_a_worker_dies_is_answered_by_the_next_one(nursery: Make, diary) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            for name in range(5):
                host.score("a", TOP, [item(name)], box, alone=True)
            await until(lambda: diary.items() == [[0]])
            diary.kill(signal.SIGKILL)
            await box.told(2)
            diary.open()
            await box.told(5)

    ask(go())
    assert (sorted(box.failures), sorted(box.complete)) == ([0, 1], [2, 3, 4])


def test_a_child_that_left_the_group_does_not_outlive_its_worker(nursery: Make, diary) -> None:
    async def go() -> None:
        async with hosted(nursery(runaway=True)) as host:
            first = diary.pid("runaway")
            assert alive(first)
            diary.kill(signal.SIGKILL)
            await until(lambda: host.restarts == 1 and not alive(first))
            await host.wait_ready()
        await until(lambda: not alive(diary.pid("runaway")))

    ask(go())


def test_a_worker_s_death_is_seen_where_a_child_that_cannot_be_found_holds_its_socket(
    nursery: Make, diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kin_module, "_PROC", Path("/nowhere"))

    async def go() -> None:
        async with hosted(nursery(runaway=True)) as host:
            diary.kill(signal.SIGKILL)
            await until(lambda: host.restarts == 1)
            await host.wait_ready()

    try:
        ask(go())
    finally:
        for note in diary.all("runaway"):
            os.kill(note["pid"], signal.SIGKILL)


def test_an_item_that_kills_every_worker_is_refused_and_its_neighbours_are_answered(nursery: Make, diary) -> None:
    box = Box()
    answered: dict[int, str] = {}

    async def go() -> None:
        async with hosted(nursery(deadly=[2])) as host:
            host.score("a", TOP, [item(name) for name in range(4)], box, alone=False)
            for count in range(20):
                await box.told(1)
                answered.update(dict.fromkeys(box.complete, "answered"))
                answered.update({n: e.reason for n, e in box.failures.items() if e.reason is Reason.SCORING_FAILED})
                left = [n for n, error in box.failures.items() if error.reason is Reason.TEACHER_UNAVAILABLE]
                box.__init__()
                if len(answered) == 4:
                    break
                if left:
                    host.score(f"again {count}", TOP, [item(name) for name in left], box, alone=False)
            assert host.restarts == lane_module.MOST_DEATHS

    ask(go())
    assert answered == {0: "answered", 1: "answered", 2: Reason.SCORING_FAILED, 3: "answered"}


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT])
def test_what_is_sent_to_a_whole_service_does_not_end_a_worker(nursery: Make, diary, blow: int) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(gated=True)) as host:
            host.score("a", TOP, [item(1)], box, alone=False)
            await until(diary.items)
            diary.kill(blow)
            await asyncio.sleep(0.1)
            diary.open()
            await box.told(1)
            assert (box.complete, host.restarts) == ([1], 0)

    ask(go())


def test_closing_fails_what_is_left_and_leaves_no_process(nursery: Make, diary) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(gated=True, child=True)) as host:
            for name in range(4):
                host.score("a", TOP, [item(name)], box, alone=True)
            await until(diary.items)
        assert sorted(box.failures) == [0, 1, 2, 3]
        assert not alive(diary.pid())
        await until(lambda: not alive(diary.pid("child")))
        host.score("a", TOP, [item(9)], box, alone=True)
        await box.told(5)
        assert box.failures[9].reason is Reason.TEACHER_UNAVAILABLE
        with pytest.raises(LimbeckError):
            await host.wait_ready()

    ask(go())


SERVER = """
import asyncio, logging, sys
from hosting import Box, bound, hosted, item
from limbeck.v1 import teacher_service_pb2 as pb

async def go():
    async with hosted(bound("nursery", folder=sys.argv[1], child=True, runaway=True, busy=True)) as host:
        host.score("a", pb.Want(top_k=1), [item(1)], Box(), alone=False)
        await asyncio.sleep(1000)

asyncio.run(go())
"""


def test_the_server_s_death_ends_the_worker_in_the_middle_of_its_work(nursery: Make, diary, tmp_path: Path) -> None:
    nursery()
    server = subprocess.Popen([sys.executable, "-c", SERVER, tmp_path], cwd=Path(__file__).parent)
    try:
        ask(until(lambda: diary.all("busy")))
        family = [diary.pid(who) for who in ("born", "child", "runaway")]
        assert all(map(alive, family))
        server.kill()
        server.wait()
        ask(until(lambda: not any(map(alive, family))))
    finally:
        server.kill()


# ------------------------------------------------------------------------------------------------------------- starting


def test_a_teacher_that_refuses_to_start_says_why_and_is_tried_by_the_next_call(nursery: Make, diary, tmp_path) -> None:
    box = Box()

    async def go() -> None:
        async with hosted(nursery(needs="model")) as host:
            assert host.state == "failed"
            assert host.message.state == pb.Teacher.STATE_FAILED
            assert host.message.error.reason == "MODEL_INVALID"
            host._not_before += 1000  # it failed just now
            with pytest.raises(LimbeckError) as caught:
                await host.wait_ready()
            assert caught.value.reason is Reason.MODEL_INVALID
            host.score("a", TOP, [item(1)], box, alone=False)
            assert box.failures == {}  # not while it is being asked
            await box.told(1)
            assert box.failures[1].reason is Reason.MODEL_INVALID
            assert len(diary.all("born")) == 1
            host._not_before = 0
            (tmp_path / "model").touch()
            host.score("a", TOP, [item(2)], box, alone=False)
            await host.wait_ready()
            await box.told(2)
            assert box.complete == [2]
            assert not host.message.HasField("error")

    ask(go())


def test_a_worker_that_dies_at_its_start_is_started_until_it_lives(nursery: Make, diary, tmp_path: Path) -> None:
    async def go() -> None:
        async with hosted(nursery(dies_without="room")) as host:
            assert host.message.error.reason == "TEACHER_UNAVAILABLE"
            assert "SIGKILL" in host.message.error.problems[0].message
            await until(lambda: len(diary.all("born")) > 2)
            (tmp_path / "room").touch()
            await until(lambda: host.state == "ready")

    ask(go())


def test_pauses_between_starts_grow_up_to_a_bound() -> None:
    async def go() -> list[float]:
        host = host_module.TeacherHost("x", bound("echo", tokenizer=""), log=logging.getLogger("x"))
        return [host._next_pause() for _ in range(12)]

    pauses = ask(go())
    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert pauses[-1] == host_module.LONGEST_PAUSE


def test_what_a_worker_prints_goes_to_the_log_line_by_line(nursery: Make, caplog, capfd) -> None:
    async def go() -> None:
        async with hosted(nursery(poison=[1])) as host:
            box = Box()
            host.score("a", TOP, [item(1)], box, alone=False)
            await box.told(1)
            await until(lambda: "is poison" in caplog.text)

    with caplog.at_level(logging.INFO, "tests.service"):
        ask(go())
    assert {record.teacher for record in caplog.records if record.name == "tests.service"} == {"mine"}
    assert capfd.readouterr() == ("", "")
