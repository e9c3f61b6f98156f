"""docs/client.md: its code runs against a server, its tables are complete."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.client import AsyncClient, Client
from limbeck.errors import Reason
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK
from limbeck.testing.tiny import tiny_model

from .served import ROOT, Process
from .test_replay import replaying, signals, started

GUIDE = (ROOT / "docs" / "client.md").read_text("utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, data: Path):
    folder = tmp_path_factory.mktemp("served")
    (folder / "gemma.yaml").write_text(f"plugin: echo\ntokenizer: {data / 'tok_a'}\n")
    with Process(f"--teacher=gemma={folder / 'gemma.yaml'}", log=folder / "log") as process:
        process.ready("gemma")
        yield process


def test_the_guides_code_runs(server, capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 5
    replay, _ = replaying([started(2), signals(1, 2, tokens=True)])
    namespace: dict[str, Any] = {"__name__": "guide"}
    with replay as address:
        for block in blocks:
            where = address if "client.signals" in block else server.address
            exec(compile(block.replace("127.0.0.1:7411", where), "client.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("7 [")
    assert namespace["cursor"] == 2
    loss = namespace["step"](tiny_model(vocab_size=5000), [namespace["stored"]], [{"plugin": "cross_entropy"}])
    assert loss.item() > 0


def test_the_guide_has_every_call_and_both_clients_have_the_same():
    calls = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")} - {"close"}
    table = GUIDE.split("| call | gives |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)\(", table)) == calls
    for name in calls:
        mine, other = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert mine.parameters == other.parameters


def test_the_guide_names_every_tensor():
    floats, ids = np.zeros((2, 3), np.float32), np.tile(np.arange(3, dtype=np.int32), (2, 1))
    logprobs = np.log(np.full((2, 3), 0.25))
    signal = Signal(
        0,
        2,
        top_k=TopK.from_logprobs(ids, logprobs, np.log(np.full((2, 1), 0.25)), (1.0,)),
        target=floats[:, 0],
        token_ids=TokenLogprobs(ids.ravel(), floats.ravel(), np.array([0, 1, 6], np.int64)),
        samples=Samples(ids, ids, floats),
        hidden={-1: floats},
        full=floats,
    )
    table = GUIDE.split("## Torch")[1].split("\n- ")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([\w.]+)`", first)) == {name.replace("-1", "LAYER") for name in signal.to_torch()}


def test_the_guides_reasons_are_of_the_catalogue():
    table = GUIDE.split("## Errors")[1]
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+|UNAUTHENTICATED)`", table)) <= set(Reason)
