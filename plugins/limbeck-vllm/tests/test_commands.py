"""`limbeck run` and `limbeck serve` with the teacher `vllm`, as a person calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from limbeck.client import connect
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want

pytestmark = pytest.mark.vllm
ENGINE = "engine: {max_num_seqs: 4, kv_cache_memory_bytes: 268435456}"
RECIPE = """\
teacher:
  plugin: vllm
  model: {model}
  dtype: float32
  {engine}
student: {{from: teacher, layers: [0, 1]}}
data:
  generator: {{plugin: prompts, path: prompts.jsonl, max_new_tokens: 12, temperature: 0.8}}
  holdout: 2
  max_length: 256
losses: [{{plugin: forward_kl, top_k: 16}}]
training: {{learning_rate: 1.0e-3, max_steps: 2, per_device_train_batch_size: 2}}
evaluation: {{samples: 1, max_new_tokens: 8}}
output: out
"""


def lives(process: psutil.Process) -> bool:
    """Whether a process is there, and not only waits for its end to be read."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_generates_labels_trains_and_evaluates_with_json_alone_on_stdout(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {i}"}}\n' for i in range(8)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_folder, engine=ENGINE))
    command = [sys.executable, "-m", "limbeck.cli.main", "run", str(recipe), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [event["teacher_starting"].get("phase") for event in events if "teacher_starting" in event]
    assert phases == ["starting the engine", "loading the weights", "warming up", None]
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
    assert "Traceback" not in done.stderr
    assert "EngineCore" not in done.stderr  # vLLM is quiet


def served(tiny_folder: Path, work: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of the teacher `tiny`, and its address."""
    file = work / "teacher.yaml"
    file.write_text(f"plugin: vllm\nmodel: {tiny_folder}\ndtype: float32\n{ENGINE}\n")
    command = [sys.executable, "-m", "limbeck.cli.main", "serve", "--listen", "127.0.0.1:0", f"--teacher=tiny={file}"]
    with (work / "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    with server.stdout as lines:
        return server, lines.readline().split()[-1]


def started(server: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Processes below a server's, from those whose command line has `name` on."""
    found = [p for p in psutil.Process(server.pid).children(recursive=True) if name in " ".join(p.cmdline())]
    return [*found, *(child for one in found for child in one.children(recursive=True) if child not in found)]


def all_end(processes: list[psutil.Process]) -> None:
    end = time.monotonic() + 120
    while any(lives(process) for process in processes):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.1)


def test_a_server_tells_of_the_start_and_answers_and_a_holder_killed_at_work_leaves_no_engine(
    tiny_folder: Path, tmp_path: Path
) -> None:
    server, address = served(tiny_folder, tmp_path)
    left: list[psutil.Process] = []
    try:
        phases: list[str] = []
        ids = np.array([2, 70, 71, 72], np.int32)
        with connect(address, timeout=60) as client:
            while (teacher := client.teacher("tiny")).state == "starting":
                if teacher.phase and teacher.phase not in phases:
                    phases.append(teacher.phase)
                time.sleep(0.02)
            assert teacher.state == "ready", teacher.error
            assert {"starting the engine", "warming up"} <= set(phases)  # loading takes too little to be met surely
            want = Want(top_k=3, target=True)
            ((name, signal),) = client.score("tiny", [ScoreItem(5, ids, 0, 3)], want)
            assert (name, signal.n) == (5, 3)
            (answer,) = client.generate("tiny", [Prompt(1, ids)], Sampling(max_new_tokens=4, logprobs=2))
            assert answer.said is not None
            assert answer.said.top_k.k == 2
            prompts = (Prompt(i, ids) for i in range(1_000_000))
            texts = client.generate("tiny", prompts, Sampling(max_new_tokens=40))
            assert next(texts)  # and it is at work, until the end of this
            holders = started(server, "limbeck.service.worker")
            left = started(server, "limbeck_vllm.child")
            assert len(left) >= 2
            server.kill()  # who would end what its worker leaves
            for holder in holders:
                if holder not in left and lives(holder):
                    holder.kill()
    finally:
        server.kill()
        server.wait()
    all_end(left)


def test_a_server_killed_while_an_engine_starts_leaves_none(tiny_folder: Path, tmp_path: Path) -> None:
    server, _ = served(tiny_folder, tmp_path)
    try:
        end = time.monotonic() + 120
        while len(left := started(server, "limbeck_vllm.child")) < 2:  # vLLM has begun to start its own
            assert time.monotonic() < end, "no engine starts"
            time.sleep(0.02)
        left = started(server, "limbeck")
    finally:
        server.kill()
        server.wait()
    all_end(left)
