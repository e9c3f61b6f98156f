"""A server of runs against what the network can throw at it: paths, links, sizes, and very many connections."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.hosting.test_workspace import BAD, FIELDS
from tests.hosting.test_workspace import recipe as one_path

from limbeck.errors import LimbeckError, Reason
from limbeck.hosting import sandbox
from limbeck.service.config import ServeConfig, Timing
from limbeck.service.server import Server
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Event, RunState
from limbeck.v1.training_service_pb2_grpc import TrainingServiceStub

from .scripted_runs import RUN, ScriptedRuns
from .served import error_from, serving, soon

RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: ROWS, holdout: 2, max_length: 64}
losses: [{plugin: forward_kl, top_k: 8}]
training: {max_steps: 2, per_device_train_batch_size: 2}
evaluation: {samples: 2, max_new_tokens: 2}
output: runs/OUTPUT
"""


def rows(word: str) -> str:
    made = [{"prompt": f"{word} {n}\n", "completion": f"{n} and {n}."} for n in range(12)]
    return "".join(json.dumps(row) + "\n" for row in made)


@pytest.fixture
def root(tmp_path: Path, data: Path, tiny_teacher: Path) -> Path:
    """The root of C50, with its links, a model, and rows inside and outside that say where they lie."""
    shutil.copytree(data / "C50", tmp_path / "c")
    for line in (data / "C50" / "links.txt").read_text().splitlines()[1:]:
        link, target = line.split(" -> ")
        (tmp_path / "c" / link).symlink_to(target)
    root = tmp_path / "c" / "root"
    shutil.copytree(tiny_teacher, root / "teacher")
    shutil.copytree(data / "tok_a", root / "tok")
    (root / "good.jsonl").write_text(rows("INSIDE"))
    (tmp_path / "c" / "outside" / "rows.jsonl").write_text(rows("SECRET"))
    return root


def with_runs(root: Path, check: Callable[[TrainingServiceStub, Server], Awaitable[None]], **more: Any) -> None:
    """A test over a server with real runs and nothing else."""

    async def go() -> None:
        server = Server(ServeConfig(workspace=root, listen="127.0.0.1:0", **more))
        channel = grpc.aio.insecure_channel(await server.start(), options=[("grpc.enable_http_proxy", 0)])
        try:
            await check(TrainingServiceStub(channel), server)
        finally:
            await channel.close()
            await server.stop(0.0)

    asyncio.run(go())


def asked(recipe: str, request_id: str = "r") -> pb.CreateRunRequest:
    return pb.CreateRunRequest(request_id=request_id, recipe=recipe)


async def ended(stub: TrainingServiceStub, run_id: str) -> tuple[RunState, list[Event]]:
    """Watch a run to its end."""
    events = [
        event async for answer in stub.WatchRun(pb.WatchRunRequest(run_id=run_id)) for event in answer.events.events
    ]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events[-1].state_changed.state, events


def holds(folder: Path, word: bytes) -> list[str]:
    """Files below a folder that hold a word; links are not followed."""
    return [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if not os.path.islink(os.path.join(parent, name)) and word in Path(parent, name).read_bytes()
    ]


def names(folder: Path) -> list[str]:
    """All that lies below a folder, but for what the server keeps for itself."""
    return sorted(path for path in map(str, folder.rglob("*")) if "/.limbeck/" not in path)


# ---------------------------------------------------------------------------------------------------------------- C50


@pytest.mark.parametrize("field", FIELDS)
def test_c50_a_path_that_leads_outside_is_refused_the_same_whatever_is_there(root, field):
    """By CreateRun and ValidateRecipe in the same words, and nothing is left of what was asked."""
    recipes = [one_path(field, line) for bad, line in BAD if bad == field]
    assert recipes

    async def answers(stub: TrainingServiceStub) -> list[Any]:
        found = []
        for number, recipe in enumerate(recipes):
            call = stub.CreateRun(asked(recipe, f"r{number}"))
            code, error = await error_from(call)
            assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.RECIPE_INVALID)
            whole = f"{await call.details()} {await call.trailing_metadata()} {error}"
            validated = await stub.ValidateRecipe(pb.ValidateRecipeRequest(recipe=recipe))
            assert (validated.error.reason, validated.error.message) == ("RECIPE_INVALID", error.message)
            (created,), (problem,) = error.problems, validated.error.problems
            assert (created.message, created.field, created.hint) == (
                problem.message,
                problem.field,
                problem.hint or None,
            )
            assert problem.file == "recipe"
            for secret in (str(root.parent), str(root.resolve()), '"secret"', "completion"):
                assert secret not in whole + str(validated)
            found.append((str(error), validated))
        return found

    async def check(stub, _):
        before = names(root.parent)
        first = await answers(stub)
        assert names(root.parent) == before
        shutil.rmtree(root.parent / "outside")
        without = names(root.parent)
        assert await answers(stub) == first
        assert names(root.parent) == without
        assert list((await stub.ListRuns(pb.ListRunsRequest())).runs) == []

    with_runs(root, check)


def test_c50_a_link_that_is_swapped_after_the_check_leads_nowhere(root):
    """The swap is done when CreateRun has answered: long before the run's process opens what the recipe names."""
    (root / "lent").symlink_to("inside")
    (root / "inside" / "rows.jsonl").write_text(rows("INSIDE"))
    recipe = RECIPE.replace("ROWS", "lent/rows.jsonl")

    async def check(stub, _):
        good = await stub.CreateRun(asked(recipe.replace("OUTPUT", "good"), "good"))
        state, events = await ended(stub, good.run.run_id)
        assert state == RunState.RUN_STATE_SUCCEEDED, events[-1]
        assert any(b"INSIDE" in event.SerializeToString() for event in events)  # what is read can be seen
        assert holds(root, b"INSIDE") != [str(root / "inside" / "rows.jsonl")]

        bad = await stub.CreateRun(asked(recipe.replace("OUTPUT", "bad"), "bad"))
        (root / "other").symlink_to(root.parent / "outside")
        (root / "other").rename(root / "lent")
        state, events = await ended(stub, bad.run.run_id)
        assert state == RunState.RUN_STATE_FAILED
        assert events[-1].state_changed.error.reason == "RECIPE_INVALID"
        assert not any(b"SECRET" in event.SerializeToString() for event in events)
        assert str(root.parent) not in str(events[-1])

    with_runs(root, check)
    assert holds(root.resolve(), b"SECRET") == []


# --------------------------------------------------------------------------------------------------------------- sizes


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in itertools.pairwise("abcdefghi")
)
HURTFUL = {
    "lists": "a: [" * 200_000,
    "mappings": "{" * 100_000,
    "aliases": BOMB,
    "an alias in itself": "a: &a [*a]",
    "a tag": "data: !!python/object/apply:os.system ['touch pwned']",
    "a zero": "\0",
    "dashes": "- " * 50_000,
    "items": "a:\n" + "- b\n" * 250_000,
    "keys": "? " * 50_000,
    "two documents": "a: b\n---\nc: d",
    "a long path": "output: " + "x/" * 300_000,
}


@pytest.mark.parametrize("recipe", HURTFUL.values(), ids=HURTFUL)
def test_texts_that_are_made_to_hurt_are_refused(root, recipe):
    async def check(stub, _):
        code, error = await error_from(stub.CreateRun(asked(recipe)))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.RECIPE_INVALID)

    with_runs(root, check)
    assert not Path("pwned").exists()


def test_a_request_larger_than_messages_may_be_is_refused_and_the_server_goes_on(root):
    async def check(stub, _):
        call = stub.CreateRun(asked("a" * (5 << 20)))
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        _, error = await error_from(stub.CreateRun(asked("a" * (2 << 20))))
        assert error.reason is Reason.REQUEST_INVALID
        assert list((await stub.ListRuns(pb.ListRunsRequest())).runs) == []

    with_runs(root, check)


# --------------------------------------------------------------------------------------------------------- connections

MANY = 300


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_hundreds_of_idle_watchers_and_of_quick_connections_neither_crash_nor_leak(echo, tmp_path):
    runs = ScriptedRuns(tmp_path)
    runs.past.say("one")
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

    async def check():
        async with serving(echo, runs=runs, workspace=tmp_path / "w", timing=Timing(poll=0.2)) as served:
            host, _, port = served.address.rpartition(":")
            stub = TrainingServiceStub(served.channel)
            assert (await stub.ListRuns(pb.ListRunsRequest())).runs
            before = descriptors()
            channels = [grpc.aio.insecure_channel(served.address, options=options) for _ in range(MANY)]
            calls = [
                TrainingServiceStub(channel).WatchRun(pb.WatchRunRequest(run_id=RUN, after_sequence=1))
                for channel in channels
            ]
            await soon(lambda: runs.past.waiting == MANY)
            for number in range(MANY):  # as port scanners and broken clients do
                with socket.create_connection((host, int(port))) as end:
                    end.sendall((b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[number % 3])
            runs.past.say("two")
            for call in calls:
                assert [event.sequence for event in (await call.read()).events.events] == [2]
            await asyncio.gather(*(channel.close() for channel in channels))
            del call, calls, channels  # gRPC's clients hang up when nobody holds them any more
            gc.collect()
            await soon(lambda: runs.past.waiting == 0 and served.server.busy == 0)
            await soon(lambda: descriptors() <= before + 5)
            assert (await stub.ListRuns(pb.ListRunsRequest())).runs

    asyncio.run(check())


async def _first(calls: list[Any], count: int) -> AsyncIterator[LimbeckError]:
    """The errors of the first calls that end."""
    for ending in itertools.islice(asyncio.as_completed([error_from(call) for call in calls]), count):
        yield (await ending)[1]


def test_one_client_has_only_so_many_watchers_over_all_its_connections(echo, tmp_path):
    import hashlib

    tokens = tmp_path / "tokens.yaml"
    digest = hashlib.sha256(b"good").hexdigest()
    tokens.write_text(f"tokens:\n  - {{name: tom, token_sha256: {digest}, role: train}}\n")
    runs = ScriptedRuns(tmp_path)
    runs.past.say("one")
    metadata = (("authorization", "Bearer good"),)
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

    async def check():
        async with serving(echo, runs=runs, workspace=tmp_path / "w", tokens=tokens) as served:
            channels = [grpc.aio.insecure_channel(served.address, options=options) for _ in range(8)]
            request = pb.WatchRunRequest(run_id=RUN, after_sequence=1)
            calls = [TrainingServiceStub(channels[n % 8]).WatchRun(request, metadata=metadata) for n in range(MANY)]
            refused = [error async for error in _first(calls, MANY - 64)]
            assert {error.reason for error in refused} == {Reason.QUOTA_EXCEEDED}
            assert runs.past.waiting == 64
            await asyncio.gather(*(channel.close() for channel in channels))
            await soon(lambda: served.server.busy == 0)
            made = await TrainingServiceStub(served.channel).CreateRun(asked("a: 1"), metadata=metadata)
            assert made.run.run_id == RUN
            assert runs.asked[-1] == ("create", "a: 1", "r", "tom", 0)

    asyncio.run(check())


# ------------------------------------------------------------------------------------------------------------- options


def problems_of(tmp_path: Path, **options: Any) -> set[tuple[str | None, str]]:
    with pytest.raises(LimbeckError) as caught:
        Server(ServeConfig(**({"listen": "127.0.0.1:0"} | options)))
    assert caught.value.reason is Reason.SERVER_INVALID
    return {(problem.field, problem.message) for problem in caught.value.problems}


def test_a_workspace_that_cannot_be_is_refused_with_all_that_is_wrong(tmp_path):
    from limbeck.hosting.limits import RunLimits

    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("gone")
    bad = RunLimits(max_runs=0, keep_runs=-1, keep_gib=float("nan"))
    found = problems_of(tmp_path, workspace=tmp_path / "file", read=[tmp_path / "gone"], runs=bad)
    assert {field for field, _ in found} == {"--workspace", "--read", "--max-runs", "--keep-runs", "--keep-gib"}
    for place in ("file/below", "dangling", "dangling/below"):
        assert {field for field, _ in problems_of(tmp_path, workspace=tmp_path / place)} == {"--workspace"}
    assert {field for field, _ in problems_of(tmp_path, workspace=Path("/"))} == {"--workspace"}
    new = ServeConfig(workspace=Path("/limbeck-that-is-not-there-yet"))  # it would be made, below the root
    assert "all of this machine" not in str(new.problems())
    assert ("--read", "is for the recipes of runs") in problems_of(tmp_path, read=[tmp_path])


def test_keys_and_tokens_must_not_lie_where_recipes_read(tmp_path):
    (tmp_path / "lent").mkdir()
    for name in ("key.pem", "tokens.yaml"):
        (tmp_path / "lent" / name).touch()
    (tmp_path / "key").symlink_to("lent/key.pem")
    found = problems_of(
        tmp_path,
        workspace=tmp_path / "w",
        read=[tmp_path / "lent"],
        tls_key=tmp_path / "key",
        tokens=tmp_path / "lent" / "tokens.yaml",
    )
    lies = "lies where a recipe from the network may read"
    assert {("--tls-key", lies), ("--tokens", lies)} <= found
    (tmp_path / "w" / ".keys").mkdir(parents=True)
    (tmp_path / "w" / ".keys" / "tokens.yaml").touch()
    hidden = problems_of(tmp_path, workspace=tmp_path / "w", tokens=tmp_path / "w" / ".keys" / "tokens.yaml")
    assert ("--tokens", lies) in hidden


def test_the_log_says_once_that_the_kernel_cannot_keep_runs_inside(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "version", lambda: 0)

    async def check(stub, _):
        for _ in range(3):
            await stub.ListRuns(pb.ListRunsRequest())

    with_runs(tmp_path / "w", check)
    assert len([message for message in caplog.messages if "Landlock" in message]) == 1
