"""Against `limbeck serve`: an audit over the wire, and what the README shows."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from limbeck.data import read_sequences

from .conftest import ROOT, command, environment

Inside = Callable[..., tuple[int, str, str]]
RECIPE = """\
teacher: {plugin: transformers, model: teacher}
student: {model: teacher}
data: {path: rows.jsonl, holdout: 3}
losses: [{plugin: forward_kl, top_k: 16, temperature: 2.0}]
output: run
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, kill_points: ModuleType, finished: Path) -> Path:
    """A tiny teacher and rows with its answers."""
    folder = tmp_path_factory.mktemp("remote")
    kill_points.make_project(folder)
    rows = (finished / "run" / "rows" / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text(rows)
    (folder / "audit.yaml").write_text(RECIPE)
    (folder / "teacher.yaml").write_text("plugin: transformers\nmodel: teacher\n")
    return folder


@pytest.fixture(scope="module")
def address(project: Path, finished: Path) -> Iterator[str]:
    """A server of the teacher and of the signals of a finished run, `demo`."""
    arguments = ["serve", "--teacher", f"tiny={project / 'teacher.yaml'}", "--listen", "127.0.0.1:0"]
    arguments += ["--signals", f"demo={finished / 'run'}"]
    with (project / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=log, text=True, env=environment()
        )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("listening on "), (project / "serve.log").read_text()
    yield first.split()[-1]
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def test_an_audit_over_the_wire_says_what_one_in_process_says(project: Path, address: str, inside: Inside) -> None:
    recipe = project / "audit.yaml"
    local = inside("audit", recipe, "--rows", "3", "--json")
    remote = inside("audit", recipe, "--rows", "3", "--json", "--server", address, "--teacher", "tiny")
    assert local[0] == remote[0] == 0, local[2] + remote[2]
    assert json.loads(remote[1]) == json.loads(local[1])
    assert {"hidden states f32", "hidden states bf16"} <= {line["signal"] for line in json.loads(local[1])["lines"]}


def test_an_audit_of_a_server_that_is_not_there_is_no_traceback(project: Path, inside: Inside) -> None:
    recipe = project / "audit.yaml"
    code, _, err = inside("audit", recipe, "--server", "127.0.0.1:9", "--teacher", "tiny")
    assert code == 1
    assert "SERVER_UNAVAILABLE" in err or "cannot be reached" in err
    assert "Traceback" not in err


def test_the_client_of_the_readme_reads_the_signals_of_a_run(address: str, finished: Path) -> None:
    (block,) = re.findall(r"```python\n(from limbeck.client.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(block.replace("127.0.0.1:7411", address), "README.md", "exec"), namespace)
    last = read_sequences(finished / "run" / "sequences" / "train.arrow")[-1]
    assert namespace["stored"].sequence == last.index + 1
    assert namespace["tokens"].tolist() == last.ids.tolist()
    mass = np.exp(namespace["logprobs"]).sum(axis=1) + np.exp(namespace["tail"])
    assert mass == pytest.approx(np.ones(last.n), abs=1e-9)
    assert namespace["ids"].shape == (last.n, 16)
