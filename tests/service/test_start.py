"""The start of a teacher: what is told of it, to whom, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from limbeck.client import Prompt, Sampling, ScoreItem, Want, connect_async
from limbeck.errors import LimbeckError, Reason
from limbeck.recipe import Bound
from limbeck.service import host as host_module
from limbeck.service.config import Timing
from limbeck.service.host import TeacherHost
from limbeck.teachers import LimbeckConfig
from limbeck.teachers.remote import LimbeckTeacher
from limbeck.testing.teachers import ask, completions, scores
from limbeck.v1 import teacher_service_pb2 as pb

from .hosting import Box, alive, bound, hosted, ids, item, until
from .served import serving

Make = Callable[..., Bound]
PHASES = ["loading the weights", "warming up"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "SHORTEST_PAUSE", 0.05)


def starting(teacher: Bound) -> tuple[TeacherHost, asyncio.Task[None]]:
    """A host whose teacher starts."""
    host = TeacherHost("mine", teacher, log=logging.getLogger("tests.service"))
    return host, asyncio.ensure_future(host.start())


@pytest.mark.parametrize("how", [{}, {"blocks": True}, {"from_thread": True}])
def test_each_phase_is_told_while_it_lasts_and_none_once_it_answers(
    nursery: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict[str, bool]
) -> None:
    async def go() -> None:
        host, start = starting(nursery("slow", phases=PHASES, **how))
        try:
            for phase in PHASES:
                await until(lambda phase=phase: host.phase == phase)
                assert (host.message.state, host.message.phase) == (pb.Teacher.STATE_STARTING, phase)
                before = host.message.phase_seconds
                await asyncio.sleep(0.01)
                assert host.message.phase_seconds > before
                (tmp_path / phase).touch()
            await start
            assert host.state == "ready"
            assert (host.message.phase, host.message.phase_seconds) == ("", 0.0)
        finally:
            await host.close()

    with caplog.at_level(logging.INFO, "tests.service"):
        ask(go())
    told = [record.getMessage() for record in caplog.records if "teacher starts" in record.getMessage()]
    assert told == [
        f"teacher starts: {phase}"
        for phase in ("starting its process", "loading its plugin", *PHASES, "answering a first question")
    ]


def test_a_teacher_without_a_start_of_its_own_tells_of_its_load_too(
    nursery: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with hosted(nursery()):
            pass

    with caplog.at_level(logging.INFO, "tests.service"):
        ask(go())
    assert "teacher starts: loading the model" in caplog.text


def test_a_start_that_is_refused_says_why_and_is_in_no_phase_any_more(nursery: Make, diary, tmp_path: Path) -> None:
    async def go() -> None:
        for phase in PHASES:
            (tmp_path / phase).touch()
        async with hosted(nursery("slow", phases=PHASES, refuses=True)) as host:
            assert (host.message.state, host.message.phase) == (pb.Teacher.STATE_FAILED, "")
            assert host.message.error.reason == "MODEL_INVALID"
            assert host.message.error.problems[0].message == "the GPU has 8 GiB, the weights need 9"
            assert not diary.all("started")

    ask(go())


def test_a_teacher_that_is_asked_with_text_is_refused_with_what_to_do() -> None:
    async def go() -> None:
        async with hosted(bound("echo-text")) as host:
            assert (host.message.state, host.message.error.reason) == (pb.Teacher.STATE_FAILED, "CAPABILITY_MISSING")
            assert "echo-text, which has no token ids" in host.message.error.problems[0].message
            assert "name it in a recipe" in host.message.error.problems[0].hint

    ask(go())


@pytest.mark.parametrize("how", [{}, {"blocks": True}])
def test_a_start_that_hangs_is_seen_and_closing_ends_it_with_all_its_children(nursery: Make, diary, how) -> None:
    async def go() -> None:
        host, start = starting(nursery("slow", phases=["hanging"], child=True, runaway=True, **how))
        await until(lambda: host.phase == "hanging")
        family = [diary.pid(who) for who in ("born", "child", "runaway")]
        assert all(map(alive, family))
        await host.close()
        await start
        await until(lambda: not any(map(alive, family)))
        assert (host.state, host.phase) == ("failed", "")

    ask(go())


def test_a_worker_that_is_killed_while_it_loads_starts_again(nursery: Make, diary, tmp_path: Path) -> None:
    async def go() -> None:
        host, start = starting(nursery("slow", phases=PHASES, child=True))
        try:
            await until(lambda: host.phase == PHASES[0])
            first, child = diary.pid(), diary.pid("child")
            diary.kill(signal.SIGKILL)
            await start
            assert "SIGKILL while it started" in host.message.error.problems[0].message
            await until(lambda: not alive(child) and host.phase == PHASES[0] and diary.pid() != first)
            for phase in PHASES:
                (tmp_path / phase).touch()
            await host.wait_ready()
        finally:
            await host.close()

    ask(go())


def test_an_engine_that_died_alone_is_started_again_in_its_worker_and_that_is_seen(
    nursery: Make, diary, tmp_path: Path
) -> None:
    box, other = Box(), Box()

    async def go() -> None:
        (tmp_path / "loading").touch()
        async with hosted(nursery("slow", phases=["loading"], poison=[5], loses_gpu=True)) as host:
            (tmp_path / "loading").unlink()
            host.score("a", pb.Want(target=True), [item(4), item(5)], box, alone=False)
            await until(lambda: host.phase == "loading")
            assert host.message.state == pb.Teacher.STATE_STARTING
            host.score("b", pb.Want(target=True), [item(6)], other, alone=False)
            ready = asyncio.ensure_future(host.wait_ready())
            await asyncio.sleep(0.05)
            assert (ready.done(), box.failures, other.complete) == (False, {}, [])
            (tmp_path / "loading").touch()
            await ready
            await box.told(2)
            await other.told(1)
            await until(lambda: host.state == "ready")
            assert (box.complete, other.complete, host.restarts) == ([4], [6], 0)
            assert box.failures[5].reason is Reason.SCORING_FAILED

    ask(go())
    assert len(diary.all("born")) == 1


def test_a_lost_worker_s_pause_is_a_phase_too(nursery: Make, diary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "SHORTEST_PAUSE", 1000.0)
    monkeypatch.setattr(host_module, "LONGEST_PAUSE", 1000.0)

    async def go() -> None:
        async with hosted(nursery()) as host:
            diary.kill(signal.SIGKILL)
            await until(lambda: host.state == "starting")
            assert host.message.phase == "waiting for 1000.0 s, since its worker ended by SIGKILL"

    ask(go())


# ----------------------------------------------------------------------------------------------------- what clients see


def test_a_call_that_waits_is_told_each_phase_as_soon_as_it_begins(nursery: Make, tmp_path: Path) -> None:
    async def go() -> None:
        teacher = nursery("slow", phases=["loading /srv/models/gemma", *PHASES[1:]])
        (tmp_path / "loading /srv/models").mkdir(parents=True)
        timing = Timing(poll=0.01)  # and a sign of life only every 15 seconds
        async with serving(teacher, host=None, timing=timing) as served:
            call = served.stub.Score()
            await call.write(
                pb.ScoreRequest(start=pb.ScoreStart(teacher="t", want=pb.Want(target=True), credit=1 << 20))
            )
            told = [(await call.read()).alive]
            while told[-1].phase != "loading …/gemma":
                told.append((await call.read()).alive)
            listed = (await served.stub.ListTeachers(pb.ListTeachersRequest())).teachers[0]
            assert (listed.state, listed.phase) == (pb.Teacher.STATE_STARTING, "loading …/gemma")
            (tmp_path / "loading /srv/models/gemma").touch()
            while told[-1].phase != "warming up":
                told.append((await call.read()).alive)
            assert told[-1].phase_seconds < 10
            (tmp_path / "warming up").touch()
            while (answer := await call.read()).WhichOneof("kind") == "alive":
                pass
            assert answer.started.teacher.phase == ""
            await call.write(pb.ScoreRequest(items=pb.ScoreItems(items=[item(1)])))
            await call.done_writing()
            assert (await call.read()).fragment.item_id == 1
            assert await call.read() is grpc.aio.EOF

    ask(go())


def test_the_client_tells_what_it_waits_for(nursery: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        serving_it = serving(nursery("slow", phases=PHASES), host=None, timing=Timing(poll=0.01))
        async with serving_it as served, connect_async(served.address) as client:
            heard = []
            while (found := await client.teacher("t", told=heard.append)).phase != PHASES[0]:
                await asyncio.sleep(0.01)
            assert (found.state, found.info) == ("starting", None)
            call = client.scoring("t", [ScoreItem(0, ids(6), 0, 5)], Want(target=True))
            answer = asyncio.ensure_future(call.next())
            await until(lambda: "teacher t: loading the weights" in caplog.text)
            waiting = asyncio.ensure_future(client.teacher("t", wait=60, told=heard.append))
            (tmp_path / PHASES[0]).touch()
            await until(lambda: "teacher t: warming up" in caplog.text)
            await until(lambda: heard and heard[-1].phase == PHASES[1])
            (tmp_path / PHASES[1]).touch()
            assert (await waiting).state == "ready"
            assert len(await answer) == 1
            await call.close()

    ask(go())
    assert {record.name for record in caplog.records if "warming up" in record.getMessage()} >= {"limbeck.client"}


def test_the_teacher_of_a_server_passes_the_phases_on(nursery: Make, tmp_path: Path) -> None:
    async def go() -> list[str]:
        async with serving(nursery("slow", phases=PHASES), host=None) as served:
            teacher = LimbeckTeacher(LimbeckConfig(address=served.address, teacher="t"))
            heard: list[str] = []
            start = asyncio.ensure_future(teacher.start(heard.append))
            for phase in PHASES:
                await until(lambda phase=phase: phase in heard)
                (tmp_path / phase).touch()
            await start
            await teacher.start(heard.append)
            assert teacher.info().weights_digest == "b" * 64
            await teacher.close()
            return heard

    heard = ask(go())
    assert [phase for phase in heard if phase in PHASES] == PHASES


def test_whoever_asks_what_the_teacher_of_a_server_is_is_told_what_it_waits_for(
    nursery: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with serving(nursery("slow", phases=PHASES), host=None) as served:
            teacher = LimbeckTeacher(LimbeckConfig(address=served.address, teacher="t"))
            info = asyncio.ensure_future(asyncio.to_thread(teacher.info))
            for phase in PHASES:
                await until(lambda phase=phase: f"teacher t: {phase}" in caplog.text)
                (tmp_path / phase).touch()
            assert (await info).weights_digest == "b" * 64
            await teacher.close()

    ask(go())


def test_the_teacher_of_a_server_that_hangs_is_given_up_with_its_phase(nursery: Make) -> None:
    async def go() -> None:
        async with serving(nursery("slow", phases=["hanging"]), host=None) as served:
            await until(lambda: served.host.phase == "hanging")
            teacher = LimbeckTeacher(LimbeckConfig(address=served.address, teacher="t", retry_for=0.2))
            with pytest.raises(LimbeckError) as caught:
                await teacher.start(lambda phase: None)
            assert caught.value.reason is Reason.TEACHER_UNAVAILABLE
            assert "it still starts: hanging" in caught.value.problems[0].message
            await teacher.close()

    ask(go())


def test_all_who_wait_for_a_slow_start_are_answered_and_one_who_leaves_disturbs_nobody(
    nursery: Make, tmp_path: Path, diary
) -> None:
    asked = [ScoreItem(i, ids(6 + i, i), 0, 4) for i in range(20)]
    prompts = [Prompt(i, ids(6, i)) for i in range(5)]
    teacher = nursery("slow", phases=PHASES)
    want, sampling = Want(top_k=4, target=True), Sampling(max_new_tokens=4, logprobs=3)

    async def go() -> None:
        async with serving(teacher, host=None, timing=Timing(poll=0.01)) as served:
            clients = [connect_async(served.address) for _ in range(8)]

            async def score(number: int) -> dict[int, float]:
                return {i: float(s.target.sum()) async for i, s in clients[number].score("t", asked, want)}

            async def write(number: int) -> dict[int, list[int]]:
                return {t.item_id: t.ids.tolist() async for t in clients[number].generate("t", prompts, sampling)}

            calls = [asyncio.ensure_future((score if number % 2 else write)(number)) for number in range(8)]
            await until(lambda: served.server.service.busy == 8)
            await until(lambda: served.host.phase == PHASES[0])
            calls[3].cancel()
            await until(lambda: served.server.service.busy == 7)
            for phase in PHASES:
                (tmp_path / phase).touch()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(found.pop(3), asyncio.CancelledError)
            local = teacher.make()
            scored = {i: float(s.target.sum()) for i, s in (await scores(local, asked, want)).items()}
            written = await completions(local, prompts, sampling)
            texts = {i: text.ids.tolist() for i, text in written.items()}
            assert found == [texts, scored, texts, texts, scored, texts, scored]
            for client in clients:
                await client.close()
            assert len(diary.all("start")) == 1

    ask(go())
