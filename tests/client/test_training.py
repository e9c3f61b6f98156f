"""The calls of the training and of the plugin service: what is asked, what comes of it, and every error."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from datetime import UTC, datetime

import grpc
import pytest

from limbeck.client import Knob, Run, RunProgress, connect, connect_async
from limbeck.client.errors import AGAIN
from limbeck.client.training import AsyncTraining
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.service.translate import refuse
from limbeck.v1 import error_pb2
from limbeck.v1 import plugin_service_pb2 as plugin_pb
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.event_pb2 import Progress, RunState

from .proxy import between
from .scripted import Scripted, client_of, serving
from .scripted_training import RUN, Runs, event, events, hosting, run_message

CALLS = {
    "ListPlugins": lambda client: client.plugins(),
    "ValidateRecipe": lambda client: client.validate("output: mine"),
    "CreateRun": lambda client: client.create_run("output: mine"),
    "GetRun": lambda client: client.run(RUN),
    "ListRuns": lambda client: list(client.runs()),
    "CancelRun": lambda client: client.cancel(RUN),
    "PauseRun": lambda client: client.pause(RUN),
    "ResumeRun": lambda client: client.resume(RUN),
    "UpdateKnobs": lambda client: client.set_knobs(RUN, {"losses.a.weight": 0.5}),
    "SaveCheckpoint": lambda client: client.save_checkpoint(RUN),
    "ListCheckpoints": lambda client: client.checkpoints(RUN),
    "ListArtifacts": lambda client: client.artifacts(RUN),
    "WatchRun": lambda client: list(client.watch(RUN)),
    "fetch": lambda client: client.fetch(RUN, "never"),
}


def full_run() -> pb.Run:
    run = run_message(
        "failed",
        owner="ann",
        error=error_pb2.Error(
            reason="LOSS_NOT_FINITE", message="No.", problems=[error_pb2.Problem(message="row 7", hint="take it out")]
        ),
        queue_position=2,
        attempt=3,
        last_sequence=(1 << 53) + 1,
        oldest_sequence=5,
        progress=Progress(done=3, total=9, unit="steps"),
        metrics={"loss": 1.5, "bad": float("inf")},
        restart=pb.RESTART_POLICY_FAIL,
    )
    run.knobs.add(name="losses.a.weight", value=0.0, at_least=0.0, scheduled=True)
    run.knobs.add(name="losses.a.temperature", above=0.0, below=9.0, at_most=2.0, values=[1.0, 2.0])
    return run


def test_a_run_is_a_record_with_everything_that_was_said():
    runs = Runs()
    states = [pb.StateTime(state=RunState.RUN_STATE_CREATED), pb.StateTime(state=RunState.RUN_STATE_FAILED)]
    states[1].time.FromSeconds(60)
    runs.answers["GetRun"] = pb.GetRunResponse(run=full_run(), recipe="output: mine\n", states=states)
    with hosting(runs) as address, connect(address) as client:
        run = client.run(RUN)
    assert (run.run_id, run.output, run.owner, run.state) == (RUN, "runs/mine", "ann", "failed")
    assert run.ended
    assert run.created == datetime.fromtimestamp(1_700_000_000, UTC)
    assert run.since == datetime.fromtimestamp(1_700_000_060, UTC)
    assert run.error is not None
    assert (run.error.reason, run.error.problems) == (
        Reason.LOSS_NOT_FINITE,
        (Problem("row 7", hint="take it out"),),
    )
    assert (run.queue_position, run.attempt, run.restart) == (2, 3, "fail")
    assert (run.last_sequence, run.oldest_sequence) == ((1 << 53) + 1, 5)
    assert run.progress == RunProgress(3, 9, "steps")
    assert run.metrics == {"loss": 1.5, "bad": float("inf")}
    assert run.knobs == (
        Knob("losses.a.weight", 0.0, at_least=0.0, scheduled=True),
        Knob("losses.a.temperature", None, above=0.0, at_most=2.0, below=9.0, values=(1.0, 2.0)),
    )
    assert run.recipe == "output: mine\n"
    assert [(one.state, one.time.timestamp()) for one in run.states] == [("created", 0.0), ("failed", 60.0)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.state = "training"  # type: ignore[misc]


def test_what_a_run_has_not_said_is_none():
    with hosting(Runs()) as address, connect(address) as client:
        run = client.pause(RUN)
    assert (run.error, run.progress, run.metrics, run.knobs, run.restart) == (None, None, {}, (), "resume")
    assert not run.ended


def test_a_recipe_goes_as_text_or_from_a_file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xef\xbb\xbfoutput: mine # \xc3\xa9\r\n")
    runs = Runs()
    with hosting(runs) as address, connect(address) as client:
        client.create_run(file)
        client.create_run("a: b", "my-name", "fail")
        client.validate(file)
    first, second = runs.asked("CreateRun")
    assert first.recipe == "output: mine # é\r\n".replace("\r\n", "\n")
    assert (second.recipe, second.request_id, second.restart) == ("a: b", "my-name", pb.RESTART_POLICY_FAIL)
    assert first.restart == pb.RESTART_POLICY_RESUME
    assert len(first.request_id) == 32
    assert runs.asked("ValidateRecipe")[0].recipe == first.recipe


@pytest.mark.parametrize(("content", "told"), [(None, "No such file"), (b"a: \xff", "byte 4 is not UTF-8")])
def test_a_file_that_cannot_be_read_is_told_before_anything_is_sent(content, told, tmp_path):
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)
    runs = Runs()
    with hosting(runs) as address, connect(address) as client:
        for call in (client.create_run, client.validate):
            with pytest.raises(LimbeckError, match=told) as caught:
                call(file)
            assert caught.value.reason is Reason.RECIPE_INVALID
            assert caught.value.problems[0].file == str(file)
    assert not runs.requests


def test_create_is_sent_again_with_one_name_after_lost_connections():
    answers = [grpc.StatusCode.UNAVAILABLE, Reason.SERVER_UNAVAILABLE, pb.CreateRunResponse(run=run_message("created"))]
    runs = Runs()

    async def reply(request, context):
        await runs.refuse(answers[0], context) if len(answers) == 1 else await runs.refuse(answers.pop(0), context)
        return answers[0]

    runs.answers["CreateRun"] = reply
    with hosting(runs) as address, connect(address) as client:
        assert client.create_run("a: b").state == "created"
        client.create_run("a: b")
    names = [one.request_id for one in runs.asked("CreateRun")]
    assert len(names) == 4
    assert len(set(names[:3])) == 1
    assert names[3] != names[0]


def test_create_over_a_network_that_drops_is_one_run():
    runs = Runs()
    with (
        hosting(runs) as address,
        between(address, most=3_000, seed=2) as (proxy, reached),
        client_of(reached, timeout=60.0) as client,
    ):
        for _ in range(12):
            client.create_run("a: b" * 100)
    assert proxy.dropped >= 3
    assert len({one.request_id for one in runs.asked("CreateRun")}) == 12


def test_a_full_queue_is_told_at_once():
    runs = Runs()
    runs.answers["CreateRun"] = Reason.QUOTA_EXCEEDED
    with hosting(runs) as address, client_of(address, timeout=60.0) as client, pytest.raises(LimbeckError) as caught:
        client.create_run("a: b")
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert len(runs.asked("CreateRun")) == 1


def test_a_validation_has_each_problem_with_its_place(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: b\n")
    problems = [
        error_pb2.Problem(message="is bad", file="recipe", line=3, column=9, field="data.path", hint="mend it"),
        error_pb2.Problem(message="row is bad", file="rows.jsonl", line=7),
        error_pb2.Problem(message="is bad all over"),
    ]
    runs = Runs()
    runs.answers["ValidateRecipe"] = pb.ValidateRecipeResponse(
        error=error_pb2.Error(reason="DATA_INVALID", message="No.", problems=problems),
        warnings=[error_pb2.Problem(message="is odd", file="recipe", line=1)],
    )
    with hosting(runs) as address, connect(address) as client:
        found, text = client.validate(file), client.validate("a: b")
    assert found.error is not None
    assert text.error is not None
    assert (found.error.reason, found.error.message) == (Reason.DATA_INVALID, "No.")
    assert found.error.problems == (
        Problem("is bad", str(file), 3, 9, "data.path", "mend it"),
        Problem("row is bad", "rows.jsonl", 7),
        Problem("is bad all over"),
    )
    assert found.warnings == (Problem("is odd", str(file), 1),)
    assert (found.resolved, found.facts) == ({}, {})
    assert text.error.problems[0].file == "recipe"


def test_a_refused_recipe_has_its_places_in_the_callers_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: b\n")
    problems = [Problem("is bad", "recipe", 3, 9, "data.path", "mend it"), Problem("row is bad", "rows.jsonl", 7)]

    async def refused(request, context):
        await refuse(context, LimbeckError(Reason.RECIPE_INVALID, problems=problems), placed=True)

    runs = Runs()
    runs.answers["CreateRun"] = refused
    with hosting(runs) as address, connect(address) as client:
        found = []
        for recipe in ("a: b", file):
            with pytest.raises(LimbeckError) as caught:
                client.create_run(recipe)
            found.append(caught.value)
    assert found[0].problems == tuple(problems)
    assert found[1].problems == (Problem("is bad", str(file), 3, 9, "data.path", "mend it"), problems[1])


def test_a_recipe_that_is_good_has_its_defaults_and_facts():
    runs = Runs()
    runs.answers["ValidateRecipe"] = pb.ValidateRecipeResponse(
        resolved='{"output": "mine"}', facts='{"rows": {"n": 3}}'
    )
    with hosting(runs) as address, connect(address) as client:
        found = client.validate("a: b")
    assert (found.error, found.warnings) == (None, ())
    assert (found.resolved, found.facts) == ({"output": "mine"}, {"rows": {"n": 3}})


def test_a_look_at_a_recipe_may_take_longer_than_other_answers():
    async def slow(request, context):
        await asyncio.sleep(1.0)
        return pb.ValidateRecipeResponse()

    runs = Runs()
    runs.answers["ValidateRecipe"] = slow
    with hosting(runs) as address, client_of(address, timeout=0.3) as client:
        assert client.validate("a: b").error is None
    with client_of("127.0.0.1:9", timeout=0.3) as client, pytest.raises(LimbeckError) as caught:
        client.validate("a: b")
    assert caught.value.reason is Reason.SERVER_UNAVAILABLE


def test_runs_come_page_by_page_each_once_and_by_state():
    pages = {"": (["e", "d"], "2"), "2": (["d", "c"], "3"), "3": ([], "4"), "4": (["b"], "")}

    async def reply(request, context):
        names, token = pages[request.page_token]
        return pb.ListRunsResponse(runs=[run_message(run_id=name) for name in names], next_page_token=token)

    runs = Runs()
    runs.answers["ListRuns"] = reply
    with hosting(runs) as address, connect(address) as client:
        stream = client.runs(states=("queued", "paused"))
        assert next(stream).run_id == "e"
        assert len(runs.asked("ListRuns")) == 1
        assert [one.run_id for one in stream] == ["d", "c", "b"]
    assert all(
        list(one.states) == [RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_PAUSED] for one in runs.asked("ListRuns")
    )


def test_steering_says_what_it_wants():
    runs = Runs()
    runs.answers["SaveCheckpoint"] = pb.SaveCheckpointResponse(checkpoint=pb.Checkpoint(path="c/4", step=4, bytes=9))
    runs.answers["ListCheckpoints"] = pb.ListCheckpointsResponse(checkpoints=[pb.Checkpoint(path="c/2", step=2)])
    runs.answers["ListArtifacts"] = pb.ListArtifactsResponse(
        artifacts=[pb.Artifact(path="log.txt", size=3), pb.Artifact(path="student/a", size=1 << 40, sha256=bytes(32))]
    )
    with hosting(runs) as address, connect(address) as client:
        assert isinstance(client.cancel(RUN), Run)
        client.resume(RUN)
        client.set_knobs(RUN, {"losses.a.weight": 0.5, "losses.b.weight": 1})
        saved = client.save_checkpoint(RUN)
        assert (saved.path, saved.step, saved.bytes) == ("c/4", 4, 9)
        assert [one.step for one in client.checkpoints(RUN)] == [2]
        assert [(one.path, one.size, one.sha256) for one in client.artifacts(RUN)] == [
            ("log.txt", 3, None),
            ("student/a", 1 << 40, "00" * 32),
        ]
    assert {request.run_id for _, request in runs.requests} == {RUN}
    assert dict(runs.asked("UpdateKnobs")[0].values) == {"losses.a.weight": 0.5, "losses.b.weight": 1.0}


def test_plugins_have_schemas_to_draw_forms_from():
    runs = Runs()
    runs.answers["ListPlugins"] = plugin_pb.ListPluginsResponse(
        plugins=[
            plugin_pb.Plugin(
                name="jsd", kind=plugin_pb.Plugin.KIND_LOSS, version="1", config_schema='{"type": "object"}'
            ),
            plugin_pb.Plugin(name="of a later version", kind=99),
        ],
        failed=[plugin_pb.FailedPlugin(source="bad", error="it broke")],
        recipe_schema='{"title": "Recipe"}',
    )
    with hosting(runs) as address, connect(address) as client:
        found = client.plugins()
    (jsd,) = found.plugins
    assert (jsd.name, jsd.kind, jsd.config_schema) == ("jsd", "loss", {"type": "object"})
    assert [(one.source, one.error) for one in found.failed] == [("bad", "it broke")]
    assert found.recipe_schema == {"title": "Recipe"}


def test_asyncio_has_the_same():
    runs = Runs()
    runs.answers["ListRuns"] = pb.ListRunsResponse(runs=[run_message()])

    async def main(address: str) -> None:
        async with connect_async(address) as client:
            assert (await client.create_run("a: b")).run_id == RUN
            assert [one.run_id async for one in client.runs()] == [RUN]

    with hosting(runs) as address:
        asyncio.run(main(address))


# -------------------------------------------------------------------------------------------------------------- errors


def error_of(call, address: str, **times: float) -> LimbeckError:
    with client_of(address, **times) as client, pytest.raises(LimbeckError) as caught:
        call(client)
    return caught.value


@pytest.mark.parametrize("method", sorted(CALLS))
@pytest.mark.parametrize("reason", sorted({Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED, Reason.RUN_UNKNOWN}))
def test_every_call_ends_with_the_servers_error(method, reason):
    asked = "ListArtifacts" if method == "fetch" else method
    error = LimbeckError(reason, "All of it.", [Problem("seven is not six", field="six", hint="take six")])
    runs = Runs([error])
    runs.answers[asked] = error
    with hosting(runs) as address:
        found = error_of(CALLS[method], address, timeout=30.0)
    assert (found.reason, found.message, found.problems) == (reason, "All of it.", error.problems)
    assert len(runs.asked(asked)) == 1


@pytest.mark.parametrize("reason", sorted(set(Reason) - AGAIN))
def test_every_reason_arrives_as_itself(reason):
    runs = Runs()
    runs.answers["PauseRun"] = reason
    with hosting(runs) as address:
        assert error_of(CALLS["PauseRun"], address).reason is reason


@pytest.mark.parametrize("method", sorted(CALLS))
def test_nobody_there_is_told_by_every_call(method):
    error = error_of(CALLS[method], "127.0.0.1:9", timeout=0.3)
    assert error.reason is Reason.SERVER_UNAVAILABLE
    assert "127.0.0.1:9" in str(error)


@pytest.mark.parametrize("method", sorted(CALLS))
def test_a_server_without_runs_is_told(method):
    with serving(Scripted()) as address:
        error = error_of(CALLS[method], address)
    assert "There is no Limbeck server at this address" in str(error)


def test_what_cannot_be_sent_is_refused_before_it_is():
    runs = Runs()
    with hosting(runs) as address:
        for call in (
            lambda client: client.set_knobs(RUN, {"a": "much"}),
            lambda client: client.run(7),
            lambda client: client.create_run("a: \ud800"),
            lambda client: client.create_run("a: b", restart="perhaps"),
            lambda client: list(client.runs(states=["asleep"])),
            lambda client: list(client.watch(7)),
        ):
            assert error_of(call, address).reason is Reason.REQUEST_INVALID
    assert not runs.requests


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GetRun", pb.GetRunResponse(run=pb.Run(state=99))),
        ("PauseRun", pb.PauseRunResponse()),
        ("ValidateRecipe", pb.ValidateRecipeResponse(facts="[1]")),
        ("ValidateRecipe", pb.ValidateRecipeResponse(resolved="{")),
    ],
)
def test_what_is_not_understood_is_told(method, answer):
    runs = Runs()
    runs.answers[method] = answer
    with hosting(runs) as address:
        error = error_of(CALLS[method], address)
    assert error.reason is Reason.INTERNAL
    assert "does not understand" in error.message


# ----------------------------------------------------------------------------------------------------------- case C11


@pytest.mark.parametrize("file", ["token_with_newline.txt", "token_crlf_bom.txt"])
def test_what_editors_add_to_a_token_file_is_not_sent(file, data, tmp_path):
    runs = Runs([Reason.RUN_UNKNOWN])
    with hosting(runs) as address, connect(address, token_file=data / "C11" / file) as client:
        for name, call in CALLS.items():
            if name not in ("fetch", "WatchRun"):
                call(client)
        with pytest.raises(LimbeckError):
            list(client.watch(RUN))
    assert len(runs.metadata) == len(CALLS) - 1
    assert {one["authorization"] for one in runs.metadata} == {"Bearer hv-token-123"}


def test_a_token_that_the_server_does_not_know_is_never_shown():
    runs = Runs()
    runs.answers["GetRun"] = Reason.UNAUTHENTICATED
    with (
        hosting(runs) as address,
        connect(address, token="hv-secret") as client,
        pytest.raises(LimbeckError) as caught,
    ):
        client.run(RUN)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    assert "hv-secret" not in str(caught.value)


def test_this_machine_is_reached_with_a_proxy_in_the_environment(data, tmp_path):
    script = (
        "import sys; from limbeck.client import connect\n"
        "with connect(sys.argv[1], timeout=5) as client:\n"
        "    run = client.create_run('a: b')\n"
        "    print(run.state, [event.sequence for event in client.watch(run.run_id)])\n"
        "    print(client.fetch(run.run_id, sys.argv[2], 'recipe.yaml').read_text())\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'jinja2', 'limbeck.service'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    runs = Runs([events(1, event(2, "succeeded"))])
    runs.keep({"recipe.yaml": b"a: b"})
    with hosting(runs) as address:
        command = f'source {data / "C11" / "environment.sh"}; exec "$@"'
        arguments = ["bash", "-c", command, "bash", sys.executable, "-c", script, address, str(tmp_path)]
        done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "training [1, 2]\na: b\n"), done.stderr


def test_every_call_is_tested_here():
    public = {name for name in vars(AsyncTraining) if not name.startswith("_")} - {"paging", "watching"}
    assert len(public) == len(CALLS)
