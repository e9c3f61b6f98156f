"""limbeck.v1.TrainingService over a stand-in for its runs: what is asked of them, and every refusal."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from limbeck.client import connect_async
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.config import Limits, Timing
from limbeck.service.server import Server
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import RunState
from limbeck.v1.training_service_pb2_grpc import TrainingServiceStub

from .scripted_runs import RUN, ScriptedRuns
from .served import Served, error_from, serving, soon
from .test_server import SERVING, health_of

TRAINING, PLUGINS = "limbeck.v1.TrainingService", "limbeck.v1.PluginService"


@pytest.fixture
def runs(tmp_path: Path) -> ScriptedRuns:
    folder = tmp_path / "out"
    folder.mkdir()
    return ScriptedRuns(folder)


@pytest.fixture
def served(echo: Any, runs: ScriptedRuns, tmp_path: Path) -> Callable[..., None]:
    """Runs a test's coroutine with a stub of the service."""

    def go(check: Callable[[TrainingServiceStub, Served], Awaitable[None]], **more: Any) -> None:
        async def with_server() -> None:
            async with serving(echo, runs=runs, workspace=tmp_path / "runs", **more) as served:
                await check(TrainingServiceStub(served.channel), served)

        asyncio.run(with_server())

    return go


def test_each_call_goes_to_the_runs_with_what_it_said(served, runs):
    async def check(stub, _):
        made = await stub.CreateRun(pb.CreateRunRequest(request_id="r", recipe="a: 1", restart=2))
        assert made.run == runs.run
        assert (await stub.GetRun(pb.GetRunRequest(run_id=RUN))).recipe == "a: 1"
        page = await stub.ListRuns(pb.ListRunsRequest(page_token="t", states=[RunState.RUN_STATE_FAILED]))
        assert (page.runs[0], page.next_page_token) == (runs.run, "more")
        for name in ("CancelRun", "PauseRun", "ResumeRun"):
            answer = await getattr(stub, name)(getattr(pb, f"{name}Request")(run_id=RUN))
            assert answer.run == runs.run
        await stub.UpdateKnobs(pb.UpdateKnobsRequest(run_id=RUN, values={"losses.kl.weight": 0.25}))
        saved = await stub.SaveCheckpoint(pb.SaveCheckpointRequest(run_id=RUN))
        assert saved.checkpoint.step == 3
        kept = await stub.ListCheckpoints(pb.ListCheckpointsRequest(run_id=RUN))
        assert list(kept.checkpoints) == [saved.checkpoint]
        assert runs.asked == [
            ("create", "a: 1", "r", "", pb.RESTART_POLICY_FAIL),
            ("details",),
            ("list", [RunState.RUN_STATE_FAILED], 0, "t"),
            *((name,) for name in ("cancel", "pause", "resume")),
            ("knobs", {"losses.kl.weight": 0.25}),
            ("checkpoint",),
            ("checkpoints",),
        ]

    served(check)


def test_a_long_list_of_problems_comes_whole_from_validation_and_cut_from_creation(served, runs):
    async def check(stub, _):
        answer = await stub.ValidateRecipe(pb.ValidateRecipeRequest(recipe="a: 1"))
        assert len(answer.error.problems) == 499
        runs.error = LimbeckError(Reason.RECIPE_INVALID, problems=[Problem(f"{n} " + "y" * 300) for n in range(400)])
        code, error = await error_from(stub.CreateRun(pb.CreateRunRequest(request_id="r", recipe="a: 1")))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.RECIPE_INVALID)
        assert error.problems[-1].message.startswith("and ")
        assert error.problems[-1].message.endswith("more problems")

    served(check)


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    [
        ("CreateRun", pb.CreateRunRequest(restart=7), ["recipe", "request_id", "restart"]),
        (
            "CreateRun",
            pb.CreateRunRequest(request_id="r" * 129, recipe="é" * (1 << 19) + "."),
            ["recipe", "request_id"],
        ),
        ("ValidateRecipe", pb.ValidateRecipeRequest(), ["recipe"]),
        ("ValidateRecipe", pb.ValidateRecipeRequest(recipe="a" * ((1 << 20) + 1)), ["recipe"]),
        ("ListRuns", pb.ListRunsRequest(page_size=201, states=[0, 1, 99]), ["page_size", "states", "states"]),
        ("UpdateKnobs", pb.UpdateKnobsRequest(run_id=RUN), ["values"]),
        ("UpdateKnobs", pb.UpdateKnobsRequest(run_id=RUN, values={str(n): 1.0 for n in range(1001)}), ["values"]),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_all_its_problems(served, runs, method, request_, fields):
    async def check(stub, _):
        code, error = await error_from(getattr(stub, method)(request_))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REQUEST_INVALID)
        assert [problem.field for problem in error.problems] == fields
        assert runs.asked == []

    served(check)


def test_what_is_just_allowed_is_taken(served, runs):
    async def check(stub, _):
        await stub.CreateRun(pb.CreateRunRequest(request_id="é" * 128, recipe="a" * (1 << 20)))
        await stub.ListRuns(pb.ListRunsRequest(page_size=200))
        await stub.UpdateKnobs(pb.UpdateKnobsRequest(run_id=RUN, values={str(n): 1.0 for n in range(1000)}))
        assert [what[0] for what in runs.asked] == ["create", "list", "knobs"]

    served(check)


@pytest.mark.parametrize("run_id", ["", "../out", "x" * 4_000_000, "a/b", "a\0b", "ffff"])
def test_what_is_no_run_s_id_is_no_run(served, run_id):
    async def check(stub, _):
        for name in ("GetRun", "CancelRun", "PauseRun", "ResumeRun", "SaveCheckpoint", "ListCheckpoints"):
            code, error = await error_from(getattr(stub, name)(getattr(pb, f"{name}Request")(run_id=run_id)))
            assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.RUN_UNKNOWN)
            assert len(error.problems[0].message) < 400
        for call in (
            stub.UpdateKnobs(pb.UpdateKnobsRequest(run_id=run_id, values={"k": 1.0})),
            stub.WatchRun(pb.WatchRunRequest(run_id=run_id)),
            stub.ListArtifacts(pb.ListArtifactsRequest(run_id=run_id)),
            stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=run_id, path="log.txt")),
        ):
            assert (await error_from(call))[1].reason is Reason.RUN_UNKNOWN

    served(check)


def test_errors_hold_no_path_of_the_server(served, runs, tmp_path):
    async def check(stub, _):
        problem = Problem(f"{tmp_path}/out/rows.jsonl is bad", str(tmp_path / "x"), 3, hint=f"see {tmp_path}/y/z")
        placed = Problem("is bad", "recipe", 3, 9, "data.path")
        runs.error = LimbeckError(Reason.DATA_INVALID, f"In {tmp_path}/out/a.", [problem, placed])
        call = stub.PauseRun(pb.PauseRunRequest(run_id=RUN))
        _, error = await error_from(call)
        assert str(tmp_path) not in f"{error!r} {error} {await call.details()} {await call.trailing_metadata()}"
        assert error.problems == (Problem("…/rows.jsonl is bad", "…/x", 3, hint="see …/z"), placed)

    served(check)


def test_the_services_are_listed_and_healthy_and_there_are_none_without_a_workspace(served, echo):
    async def check(stub, served):
        call = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {TRAINING, PLUGINS, "limbeck.v1.TeacherService"} <= names
        served.host.state = "failed"  # a teacher is no business of theirs
        async with asyncio.timeout(10):
            for name in (TRAINING, PLUGINS):
                while await health_of(served.channel, name) != SERVING:
                    await asyncio.sleep(0.01)

    served(check, timing=Timing(poll=0.02))

    async def without():
        async with serving(echo) as served:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_of(served.channel, TRAINING)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            call = TrainingServiceStub(served.channel).ListRuns(pb.ListRunsRequest())
            assert await call.code() == grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(without())


# ------------------------------------------------------------------------------------------------------------- watching


async def watched(call: Any) -> list[tuple[int, str]]:
    found = []
    async for answer in call:
        found += [(event.sequence, event.log.message) for event in answer.events.events]
    return found


@pytest.mark.parametrize(("after", "first"), [(None, 1), (0, 1), (2, 3), (3, 4)])
def test_a_watcher_gets_what_follows_its_cursor_and_then_what_happens(served, runs, after, first):
    async def check(stub, _):
        runs.past.say("one", "two", "three")
        watching = asyncio.ensure_future(watched(stub.WatchRun(pb.WatchRunRequest(run_id=RUN, after_sequence=after))))
        await soon(lambda: runs.past.waiting == 1)
        for text in ("four", "five"):
            runs.past.say(text)
        runs.past.say("six", over=True)
        texts = ["one", "two", "three", "four", "five", "six"]
        assert await watching == list(enumerate(texts, 1))[first - 1 :]

    served(check)


def test_many_events_are_sent_together_in_messages_of_a_bounded_size(served, runs):
    async def check(stub, _):
        runs.past.say(*("x" * 1000 for _ in range(1000)), over=True)
        answers = [answer async for answer in stub.WatchRun(pb.WatchRunRequest(run_id=RUN))]
        assert [event.sequence for answer in answers for event in answer.events.events] == list(range(1, 1001))
        assert 3 < len(answers) < 10
        assert max(answer.ByteSize() for answer in answers) < 300 << 10

    served(check)


def test_a_cursor_that_is_not_kept_is_refused_with_the_oldest(served, runs):
    async def check(stub, _):
        runs.past.say("one", "two", "three")
        runs.past.oldest = 3
        for after in (0, 1, 4):
            code, error = await error_from(stub.WatchRun(pb.WatchRunRequest(run_id=RUN, after_sequence=after)))
            assert (code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, Reason.CURSOR_INVALID)
            assert "oldest is 3" in error.problems[0].message

    served(check)


def test_an_idle_watcher_hears_that_the_server_lives_and_is_let_go_in_the_end(served, runs):
    async def check(stub, _):
        runs.past.say("one")
        call = stub.WatchRun(pb.WatchRunRequest(run_id=RUN, after_sequence=1))
        alive = await call.read()
        assert alive.alive.last_sequence == 1
        code, error = await error_from(call)
        assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE)
        assert "last sequence" in error.message

    served(check, timing=Timing(alive=0.02, idle=0.3, poll=0.01))


def test_a_watcher_of_news_that_the_disk_has_no_room_for_is_told_so(served, runs):
    async def check(stub, _):
        runs.past.say("one")
        runs.past.behind = True
        call = stub.WatchRun(pb.WatchRunRequest(run_id=RUN))
        assert [event.sequence for event in (await call.read()).events.events] == [1]  # what is there comes first
        _, error = await error_from(call)
        assert error.reason is Reason.DISK_FULL
        assert "GetRun tells what the run is in" in error.problems[0].hint

    served(check, timing=Timing(alive=0.02, poll=0.01))


def test_a_watcher_hears_nothing_of_news_that_are_just_being_written(served, runs, monkeypatch):
    async def check(stub, _):
        runs.past.say("one")
        turns = itertools.cycle([True, False])
        monkeypatch.setattr(type(runs.past), "behind", property(lambda _: next(turns)), raising=False)
        call = stub.WatchRun(pb.WatchRunRequest(run_id=RUN, after_sequence=1))
        for _ in range(10):
            assert (await call.read()).WhichOneof("kind") == "alive"

    served(check, timing=Timing(alive=0.05, poll=0.01))


def test_a_server_that_drains_lets_its_watchers_go_and_its_runs_rest(served, runs):
    async def check(stub, served):
        runs.past.say("one")
        call = stub.WatchRun(pb.WatchRunRequest(run_id=RUN))
        await call.read()
        stopping = asyncio.ensure_future(served.server.stop(5.0))
        _, error = await error_from(call)
        assert error.reason is Reason.SERVER_UNAVAILABLE
        assert await stopping
        assert runs.closed == 5.0

    served(check, timing=Timing(poll=0.02))


def test_a_token_that_is_taken_out_ends_its_watchers(served, runs, tmp_path):
    def write(*names: str) -> None:
        entries = [
            f"  - {{name: {name}, token_sha256: {hashlib.sha256(name.encode()).hexdigest()}, role: train}}\n"
            for name in names
        ]
        (tmp_path / "tokens.yaml").write_text("tokens:\n" + "".join(entries))

    write("tom", "amy")

    async def check(stub, _):
        runs.past.say("one")
        request = pb.WatchRunRequest(run_id=RUN)
        calls = {
            name: stub.WatchRun(request, metadata=(("authorization", f"Bearer {name}"),)) for name in ("tom", "amy")
        }
        for call in calls.values():
            await call.read()
        write("amy")
        code, error = await error_from(calls["tom"])
        assert (code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED)
        runs.past.say("two", over=True)
        assert [event.log.message for event in (await calls["amy"].read()).events.events] == ["two"]
        assert await calls["amy"].read() is grpc.aio.EOF

    served(check, tokens=tmp_path / "tokens.yaml", timing=Timing(poll=0.02))


def test_runs_that_cannot_be_closed_do_not_keep_the_server_from_stopping(served, runs, caplog):
    async def full(grace: float) -> None:
        raise LimbeckError(Reason.DISK_FULL)

    runs.close = full

    async def check(stub, served):
        assert await served.server.stop(1.0)
        assert "The disk is full." in caplog.text

    served(check)


def test_watchers_count_as_streams_of_their_client(served, runs):
    async def check(stub, _):
        runs.past.say("one")
        calls = [stub.WatchRun(pb.WatchRunRequest(run_id=RUN)) for _ in range(3)]
        for call in calls:
            await call.read()
        code, error = await error_from(stub.WatchRun(pb.WatchRunRequest(run_id=RUN)))
        assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUOTA_EXCEEDED)
        calls[0].cancel()
        await soon(lambda: runs.past.waiting == 2)
        call = stub.WatchRun(pb.WatchRunRequest(run_id=RUN))
        assert (await call.read()).HasField("events")

    served(check, limits=Limits(streams=3))


# ---------------------------------------------------------------------------------------------------------------- files


async def fetched(
    stub: TrainingServiceStub, path: str, offset: int = 0, sha256: bytes = b""
) -> tuple[pb.Artifact, bytes]:
    call = stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=RUN, path=path, offset=offset, sha256=sha256))
    answers = [answer async for answer in call]
    assert answers[0].HasField("started")
    assert max(map(len, (answer.data for answer in answers))) <= 1 << 20
    return answers[0].started, b"".join(answer.data for answer in answers[1:])


def test_names_that_cannot_travel_are_left_out_and_nothing_fails(served, runs, tmp_path):
    folder = runs.folder(RUN) / "student"
    folder.mkdir()
    (folder / "größe.json").write_text("here")
    names = [b"a\nb.json", b"\x1b[2J", b"del\x7f", b"\xff.json", b"back\\slash", b"\xc2\x85"]
    for name in names:
        (folder / os.fsdecode(name)).write_text("there")
    (folder / "sub\r").mkdir()
    (folder / "sub\r" / "x").write_text("there")

    async def check(stub, place):
        listed = (await stub.ListArtifacts(pb.ListArtifactsRequest(run_id=RUN))).artifacts
        assert [one.path for one in listed] == ["student/größe.json"]
        async with connect_async(place.address) as client:
            got = await client.fetch(RUN, tmp_path / "here")
        assert [(file.name, file.read_text()) for file in got.iterdir()] == [("größe.json", "here")]
        code, error = await error_from(
            stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=RUN, path="student/a\nb.json"))
        )
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.ARTIFACT_UNKNOWN)

    served(check)


def test_files_are_listed_and_come_whole_and_from_any_offset(served, runs):
    content = random.Random(0).randbytes((5 << 20) + 17)

    async def check(stub, _):
        (runs.folder(RUN) / "student").mkdir()
        (runs.folder(RUN) / "student" / "model.safetensors").write_bytes(content)
        (runs.folder(RUN) / "log.txt").write_bytes(b"")
        listed = {one.path: one for one in (await stub.ListArtifacts(pb.ListArtifactsRequest(run_id=RUN))).artifacts}
        assert list(listed) == ["log.txt", "student/model.safetensors"]
        started, data = await fetched(stub, "student/model.safetensors")
        assert data == content
        assert started == listed["student/model.safetensors"]
        assert started.sha256 == hashlib.sha256(content).digest()
        for offset in (1, 1 << 20, len(content)):
            again, rest = await fetched(stub, started.path, offset, started.sha256)
            assert (again, rest) == (started, content[offset:])
        assert (await fetched(stub, "log.txt"))[1] == b""

    served(check)


def test_a_file_that_is_another_now_and_an_offset_behind_its_end_are_refused(served, runs):
    async def check(stub, _):
        (runs.folder(RUN) / "recipe.yaml").write_text("a: 1")
        started, _ = await fetched(stub, "recipe.yaml")
        request = {"run_id": RUN, "path": "recipe.yaml"}
        call = stub.DownloadArtifact(pb.DownloadArtifactRequest(offset=5, **request))
        assert (await error_from(call))[1].reason is Reason.CURSOR_INVALID
        call = stub.DownloadArtifact(pb.DownloadArtifactRequest(sha256=b"short", **request))
        assert (await error_from(call))[1].reason is Reason.REQUEST_INVALID
        (runs.folder(RUN) / "recipe.yaml").write_text("a: 2")
        call = stub.DownloadArtifact(pb.DownloadArtifactRequest(offset=2, sha256=started.sha256, **request))
        code, error = await error_from(call)
        assert (code, error.reason) == (grpc.StatusCode.DATA_LOSS, Reason.STORE_DAMAGED)

    served(check)


def test_a_file_that_grows_goes_on_as_it_was_when_the_call_began(served, runs):
    async def check(stub, _):
        log = runs.folder(RUN) / "log.txt"
        log.write_text("one\n")
        started, data = await fetched(stub, "log.txt")
        with log.open("a") as file:
            file.write("two\n")
        again, rest = await fetched(stub, "log.txt", 2, started.sha256)
        assert (again, data[:2] + rest) == (started, b"one\n")
        assert (await fetched(stub, "log.txt"))[1] == b"one\ntwo\n"

    served(check)


def test_the_digest_of_a_file_that_may_still_change_is_left_out(served, runs):
    async def check(stub, _):
        (runs.folder(RUN) / "events.jsonl").write_text("{}\n")
        for state, size in ((RunState.RUN_STATE_TRAINING, 0), (RunState.RUN_STATE_PAUSED, 32)):
            runs.run.state = state
            (artifact,) = (await stub.ListArtifacts(pb.ListArtifactsRequest(run_id=RUN))).artifacts
            assert len(artifact.sha256) == size

    served(check)


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "/etc/hostname", "../secret", "student/../../secret", "student//x", "student", "student/"),
        *("student/.hidden", ".lock", "run.json", "checkpoints/student/x.pt", "student/link", "linked/x", "twin/x"),
        *("student/pipe", "student/x\0", "x" * 3_000_000, "student/" + "a/" * 10_000 + "x", "STUDENT/x"),
    ],
)
def test_nothing_but_the_files_of_a_run_is_sent(served, runs, tmp_path, path):
    folder = tmp_path / "out"
    (tmp_path / "secret").write_text("SECRET")
    for name in ("student/.hidden", ".lock", "run.json", "checkpoints/student/x.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SECRET")
    (folder / "student" / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "twin").symlink_to(tmp_path)
    (tmp_path / "x").write_text("SECRET")
    os.mkfifo(folder / "student" / "pipe")

    async def check(stub, _):
        call = stub.DownloadArtifact(pb.DownloadArtifactRequest(run_id=RUN, path=path))
        code, error = await error_from(call)
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.ARTIFACT_UNKNOWN)
        assert len(error.problems[0].message) < 1000
        assert list((await stub.ListArtifacts(pb.ListArtifactsRequest(run_id=RUN))).artifacts) == []

    served(check)


# --------------------------------------------------------------------------------------------------------------- starts


def test_a_server_that_cannot_listen_touches_no_run(echo, runs, tmp_path):
    async def check():
        async with serving(echo) as other:
            with pytest.raises(LimbeckError):
                async with serving(echo, runs=runs, workspace=tmp_path / "runs", listen=other.address):
                    pass
        assert not runs.started

    asyncio.run(check())


def test_a_server_needs_no_teacher(runs, tmp_path, monkeypatch):
    from limbeck.service import server as server_module
    from limbeck.service.config import ServeConfig

    monkeypatch.setattr(server_module, "RunHost", lambda *args, **more: runs)

    async def check():
        server = Server(ServeConfig(workspace=tmp_path / "new" / "runs", listen="127.0.0.1:0"))
        address = await server.start()
        assert runs.started
        assert (tmp_path / "new" / "runs").is_dir()
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert (await TrainingServiceStub(channel).ListRuns(pb.ListRunsRequest())).runs[0].run_id == RUN
            assert await health_of(channel, "") == health_pb2.HealthCheckResponse.SERVING
        await server.stop(0.0)

    asyncio.run(check())
