"""`limbeck runs` and the example against `limbeck serve --workspace` with a tiny real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from tests.client.proxy import between
from tests.client.served import ROOT, Process

from limbeck.hosting.public import make_public
from limbeck.hosting.workspace import Workspace
from limbeck.runs.events import to_json
from limbeck.v1.event_pb2 import Event

RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {from: teacher, layers: [0, 3]}
data: {path: rows.jsonl, holdout: 4, max_length: 256}
losses:
  - {plugin: forward_kl, weight: 0.9, top_k: 16}
  - {plugin: cross_entropy, weight: 0.1}
training: {learning_rate: 1.0e-3, max_steps: 40, per_device_train_batch_size: 4, save_steps: 20}
evaluation: {twin: false, samples: 1, max_new_tokens: 8}
output: runs/NAME
"""


@pytest.fixture(scope="module")
def server(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("served")
    workspace = folder / "work"
    workspace.mkdir()
    subprocess.run(["cp", "-r", str(tiny_teacher), str(workspace / "teacher")], check=True)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} plus {n}?"},
                {"role": "assistant", "content": f"{n + n}."},
            ]
        }
        for n in range(24)
    ]
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Process(f"--workspace={workspace}", log=folder / "log") as process:
        process.workspace = workspace  # type: ignore[attr-defined]
        yield process


def limbeck(address: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck.cli.main", "runs", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LIMBECK_SERVER": address})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def as_told(file: Path, workspace: Path) -> list[Any]:
    """The events of a file as clients get them: without paths of the server."""
    public, told = Workspace(workspace).public, []
    for line in file.read_text("utf-8").strip().split("\n"):
        event = Parse(line, Event())
        make_public(event, public)
        told.append(json.loads(to_json(event)))
    return told


def test_a_run_is_created_followed_over_dropped_connections_and_fetched(server, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.replace("NAME", "dropped"))
    folder: Path = server.workspace / "runs" / "dropped"
    events: list[Any] = []
    command = [sys.executable, "-m", "limbeck.cli.main", "runs", "create", str(recipe), "--watch", "--json"]
    with between(server.address, most=0) as (proxy, address):
        environment = {**os.environ, "LIMBECK_SERVER": address}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            run_id = json.loads(process.stdout.readline())["run"]["run_id"]
            for line in process.stdout:
                events.append(json.loads(line))
                if "stage_started" in events[-1] or events[-1].get("step") in ("10", "30"):
                    proxy.drop()
        assert process.returncode == 0
        assert proxy.dropped >= 3
    last = events.pop()
    history = as_told(folder / "events.jsonl", server.workspace)
    assert events == history
    assert [int(one["sequence"]) for one in events] == list(range(1, len(events) + 1))
    assert last == {"result": {"run_id": run_id, "state": "succeeded"}}

    fetched = limbeck(server.address, "fetch", run_id[:6], "--to", tmp_path / "here", "--json")
    assert fetched.returncode == 0, fetched.stderr
    assert tree(tmp_path / "here" / "student") == tree(folder / "student")
    shown = json.loads(limbeck(server.address, "show", run_id, "--json").stdout)
    assert (shown["state"], shown["recipe"], shown["output"]) == ("succeeded", recipe.read_text(), "runs/dropped")
    again = limbeck(server.address, "watch", run_id, "--after", str(len(events) - 2), "--json")
    assert [json.loads(line) for line in again.stdout.splitlines()][:-1] == history[-2:]
    assert limbeck(server.address, "cancel", run_id).returncode == 3


def test_problems_of_a_recipe_have_the_places_that_check_gives(server, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(RECIPE.replace("forward_kl,", "forward_kll,").replace("40", "many").replace("NAME", "wrong"))
    done = limbeck(server.address, "create", recipe)
    assert done.returncode == 2
    assert f"{recipe}:5:14: losses[0].plugin: no loss plugin is called 'forward_kll'" in done.stderr
    assert f"{recipe}:7:" in done.stderr
    assert str(server.workspace) not in done.stderr
    assert json.loads(limbeck(server.address, "list", "--state", "failed", "--json").stdout)["runs"] == []


def test_the_example_distils_and_turns_a_knob(server, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.replace("NAME", "example").replace("40", "120"))
    example = ROOT / "examples" / "training" / "distil_from_python.py"
    command = [sys.executable, example, server.address, recipe, tmp_path / "here"]
    knob = ["--set", "losses.forward_kl.weight=0.5", "--at", "5"]
    done = subprocess.run([*map(str, command), *knob], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "losses.forward_kl.weight is 0.5" in done.stdout
    assert done.stdout.endswith(f"student: {tmp_path / 'here' / 'student'}\n")
    assert tree(tmp_path / "here" / "student") == tree(server.workspace / "runs" / "example" / "student")
    assert len(example.read_text("utf-8").splitlines()) <= 65
    again = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(("RUN_EXISTS", "FOLDER_NOT_OURS")), again.stderr
