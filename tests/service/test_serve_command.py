"""`limbeck serve` as a process: its first line, its signals, its exit codes, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from limbeck.v1 import teacher_service_pb2 as pb
from limbeck.v1 import training_service_pb2 as tpb
from limbeck.v1.event_pb2 import Event, RunState
from limbeck.v1.teacher_service_pb2_grpc import TeacherServiceStub
from limbeck.v1.training_service_pb2_grpc import TrainingServiceStub

from .test_replay import capture

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LIMBECK = [sys.executable, "-m", "limbeck.cli.main", "serve"]


@pytest.fixture
def teacher(tmp_path: Path, data: Path) -> Path:
    file = tmp_path / "echo.yaml"
    file.write_text(f"plugin: echo\ntokenizer: {os.path.relpath(data / 'tok_a', tmp_path)}\n")
    return file


@contextmanager
def started(*args: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and what it first says; killed where the test leaves it alive."""
    process = subprocess.Popen(
        [*LIMBECK, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 2, max_length: 64}
losses: [{plugin: forward_kl, top_k: 8}]
training: {max_steps: STEPS, per_device_train_batch_size: 2, logging_steps: 1}
evaluation: {samples: 0}
output: runs/a
"""


@pytest.fixture
def workspace(tmp_path: Path, tiny_teacher: Path) -> Path:
    """A workspace with what RECIPE names."""
    shutil.copytree(tiny_teacher, tmp_path / "workspace" / "teacher")
    rows = [{"prompt": f"{n} plus 1?\n", "completion": f"It is {n + 1}."} for n in range(12)]
    (tmp_path / "workspace" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "workspace"


def training_at(line: str) -> TrainingServiceStub:
    address = line.removeprefix("listening on ").strip()
    return TrainingServiceStub(grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]))


def stub_at(line: str) -> TeacherServiceStub:
    assert line.startswith("listening on 127.0.0.1:")
    address = line.removeprefix("listening on ").strip()
    return TeacherServiceStub(grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]))


def scored(stub: TeacherServiceStub, count: int) -> set[int]:
    """Items answered in full."""
    items = [pb.ScoreItem(item_id=number, ids=b"\5\0\0\0" * 8, n=7) for number in range(count)]
    start = pb.ScoreStart(teacher="e", want=pb.Want(top_k=4, target=True))
    messages = [pb.ScoreRequest(start=start), pb.ScoreRequest(items=pb.ScoreItems(items=items))]
    return {answer.fragment.item_id for answer in stub.Score(iter(messages)) if answer.fragment.last}


def log_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_it_serves_until_a_signal_and_leaves_no_process(teacher, tmp_path, name):
    made = capture(tmp_path / "run")
    made.label(*range(12))
    made.finish()
    with started("--teacher", f"e={teacher}", "--signals", f"s={made.folder}", "--listen", "127.0.0.1:0") as (
        process,
        line,
    ):
        stub = stub_at(line)
        assert scored(stub, 20) == set(range(20))
        replayed = stub.StreamSignals(pb.StreamSignalsRequest(dataset="s"))
        assert sum(len(message.signals.signals) for message in replayed) == 12
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.Signals[name])
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == ""
        log = log_of(err)
        assert log[-1].items() >= {"message": "stopped", "signal": name, "drained": True}.items()
        assert any(entry.get("teacher") == "e" for entry in log)
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_what_is_under_way_is_answered_before_it_stops(teacher):
    with started("--teacher", f"e={teacher}", "--listen", "127.0.0.1:0") as (process, line):
        call = said(stub_at(line).Score(iter(asked(credit=0))))  # half-closed: no credit is needed
        assert next(call).HasField("started")
        assert not next(call).fragment.last
        process.send_signal(signal.SIGTERM)
        assert [answer.fragment.last for answer in call] == [False, True]
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_second_signal_ends_it_at_once(teacher, name, code):
    gone = threading.Event()

    def held() -> Iterator[pb.ScoreRequest]:
        yield from asked(credit=1 << 20)  # for one fragment and a bit: the second overdraws, the third waits
        gone.wait()

    with started("--teacher", f"e={teacher}", "--listen", "127.0.0.1:0") as (process, line):
        call = said(stub_at(line).Score(held()))
        assert next(call).HasField("started")
        assert [next(call).fragment.last for _ in range(2)] == [False, False]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.Signals[name])
        assert process.stderr is not None
        while json.loads(process.stderr.readline())["message"] != "draining":
            pass
        assert process.poll() is None
        process.send_signal(signal.Signals[name])
        assert process.wait(timeout=60) == code
        assert psutil.wait_procs(children, timeout=10)[1] == []
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        gone.set()


def said(call: Iterator[pb.ScoreResponse]) -> Iterator[pb.ScoreResponse]:
    """All but signs of life, which come as long as the teacher starts."""
    return (answer for answer in call if not answer.HasField("alive"))


def asked(credit: int) -> list[pb.ScoreRequest]:
    """One item whose answer takes three fragments."""
    item = pb.ScoreItem(item_id=1, ids=b"\5\0\0\0" * 2500, n=2499)
    start = pb.ScoreStart(teacher="e", want=pb.Want(top_k=256), credit=credit)
    return [pb.ScoreRequest(start=start), pb.ScoreRequest(items=pb.ScoreItems(items=[item]))]


def test_json_holds_the_address_and_nothing_else(teacher):
    with started("--teacher", f"e={teacher}", "--listen", "127.0.0.1:0", "--json") as (process, line):
        address = json.loads(line)["listening"]
        assert scored(stub_at(f"listening on {address}"), 2) == {0, 1}
        process.terminate()
        assert process.communicate(timeout=60)[0] == ""


LIGHT = """
import asyncio, sys
from pathlib import Path
import grpc
from limbeck.cli import serve
from limbeck.service.config import ServeConfig
from limbeck.service.server import Server
from limbeck.v1 import plugin_service_pb2 as plugins, training_service_pb2 as pb
from limbeck.v1.plugin_service_pb2_grpc import PluginServiceStub
from limbeck.v1.training_service_pb2_grpc import TrainingServiceStub

async def work():
    server = Server(ServeConfig(workspace=Path(sys.argv[1]), listen="127.0.0.1:0"))
    channel = grpc.aio.insecure_channel(await server.start(), options=[("grpc.enable_http_proxy", 0)])
    assert (await PluginServiceStub(channel).ListPlugins(plugins.ListPluginsRequest())).plugins
    stub = TrainingServiceStub(channel)
    answer = await stub.ValidateRecipe(pb.ValidateRecipeRequest(recipe=sys.argv[2]))
    assert not answer.HasField("error"), answer
    made = await stub.CreateRun(pb.CreateRunRequest(request_id="r", recipe=sys.argv[2]))
    last = [answer async for answer in stub.WatchRun(pb.WatchRunRequest(run_id=made.run.run_id))][-1]
    assert last.events.events[-1].state_changed.state == 10, last
    artifacts = (await stub.ListArtifacts(pb.ListArtifactsRequest(run_id=made.run.run_id))).artifacts
    assert any(one.path == "student/model.safetensors" for one in artifacts)
    await channel.close()
    await server.stop(1.0)

asyncio.run(work())
heavy = {"torch", "transformers", "tokenizers", "datasets", "accelerate", "vllm"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_a_server_imports_nothing_heavy_also_while_it_trains(workspace):
    recipe = RECIPE.replace("STEPS", "2")
    command = [sys.executable, "-c", LIGHT, str(workspace), recipe]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")


def test_runs_rest_when_the_server_stops_and_go_on_when_it_is_back(workspace):
    """SIGTERM while the run trains, then a server again: one history, without a gap, to the end."""
    options = ("--workspace", workspace, "--listen", "127.0.0.1:0")
    events: list[Event] = []
    with started(*options) as (process, line):
        stub = training_at(line)
        made = stub.CreateRun(tpb.CreateRunRequest(request_id="r", recipe=RECIPE.replace("STEPS", "60")))
        watching = stub.WatchRun(tpb.WatchRunRequest(run_id=made.run.run_id))
        while not any(event.HasField("metrics") for event in events):
            events += next(watching).events.events
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert log_of(err)[-1].items() >= {"message": "stopped", "drained": True}.items()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    with started(*options) as (_, line):
        stub = training_at(line)
        again = tpb.WatchRunRequest(run_id=made.run.run_id, after_sequence=events[-1].sequence)
        for answer in stub.WatchRun(again):
            events += answer.events.events
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states.count(RunState.RUN_STATE_QUEUED) == 2
    assert states[-1] == RunState.RUN_STATE_SUCCEEDED
    assert [event.run_interrupted.signal for event in events if event.HasField("run_interrupted")] == ["server"]


def test_a_second_signal_ends_a_server_at_once_with_its_runs(workspace):
    with started("--workspace", workspace, "--listen", "127.0.0.1:0") as (process, line):
        stub = training_at(line)
        made = stub.CreateRun(tpb.CreateRunRequest(request_id="r", recipe=RECIPE.replace("STEPS", "100000")))
        for answer in stub.WatchRun(tpb.WatchRunRequest(run_id=made.run.run_id)):
            if any(event.HasField("metrics") for event in answer.events.events):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            child.suspend()  # so that it cannot rest in time
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while json.loads(process.stderr.readline())["message"] != "draining":
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        for child in children:
            child.resume()
        assert psutil.wait_procs(children, timeout=10)[1] == []


def refused(*args: str | Path) -> dict:
    done = subprocess.run([*LIMBECK, *map(str, args), "--json"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)["error"]


def test_every_problem_is_told_at_once_with_its_place(teacher, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("plugin: echo\ntokeniser: nowhere\nseed: -1\n")
    error = refused(
        *("--teacher", f"a={bad}", "--teacher", f"b={tmp_path / 'gone.yaml'}", "--teacher", "c"),
        *("--signals", f"s={tmp_path}", "--listen", "127.0.0.1:99999", "--tls-cert", tmp_path / "cert.pem"),
        *("--metrics", "here", "--tokens", tmp_path / "tokens.yaml"),
        *("--max-runs", "2", "--keep-runs", "1", "--keep-gib", "0.5", "--read", tmp_path),
    )
    assert error["reason"] == "SERVER_INVALID"
    found = {(Path(p.get("file", "")).name, p.get("line"), p.get("field")) for p in error["problems"]}
    assert found == {
        ("", None, "--teacher"),
        ("", None, "--listen"),
        ("", None, "--metrics"),
        ("", None, "--tls-key"),
        ("cert.pem", None, "--tls-cert"),
        ("bad.yaml", 1, "tokenizer"),
        ("bad.yaml", 2, "tokeniser"),
        ("bad.yaml", 3, "seed"),
        ("gone.yaml", None, None),
        (tmp_path.name, None, None),
        ("tokens.yaml", None, "--tokens"),
        *(("", None, option) for option in ("--max-runs", "--keep-runs", "--keep-gib", "--read")),
    }
    assert refused()["problems"][0]["message"].startswith("there is nothing to serve")


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_server_that_cannot_listen_says_that_and_nothing_else(tmp_path, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = [
            "--workspace",
            tmp_path,
            *(["--listen", "127.0.0.1:0"] if option == "--metrics" else []),
            option,
            address,
        ]
        done = subprocess.run([*LIMBECK, *map(str, words)], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: The server cannot be started like this.")
    assert f"{option}: cannot listen on {address}" in second


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teacher: {plugin: echo}\n", "this is a recipe, not a teacher"),
        ("model: x\n", "is missing"),
        ("plugin: ecko\n", "ecko"),
        ("plugin: 3\n", "must be text"),
        ("plugin: echo\ntokenizer: nowhere/at/all\n", "is not there"),
        ("- a\n", "not a mapping"),
        ("", "empty"),
    ],
)
def test_files_that_are_no_teacher_are_refused(tmp_path, text, said):
    from limbeck.errors import LimbeckError
    from limbeck.plugins import load_plugins
    from limbeck.recipe.teacher import load_teacher

    file = tmp_path / "teacher.yaml"
    file.write_text(text)
    with pytest.raises(LimbeckError) as caught:
        load_teacher(file, load_plugins())
    assert said in str(caught.value)
    assert "student" not in str(caught.value)
    assert all(problem.file == str(file) for problem in caught.value.problems)
