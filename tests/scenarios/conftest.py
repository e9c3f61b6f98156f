"""The server of clients/serve.py, and runs that the scenarios share."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from limbeck.client import Client, Event, connect
from limbeck.client.records import state_of
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.v1 import teacher_service_pb2_grpc as teacher_rpc
from limbeck.v1 import training_service_pb2_grpc as training_rpc

CLIENTS = Path(__file__).parents[2] / "clients"


@dataclass
class Served:
    """What clients/serve.py says, see clients/README.md."""

    facts: dict[str, Any]
    _opened: list[Client] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return self.facts[name]

    def client(self, token: str | None = "train", address: str | None = None, **more: Any) -> Client:
        """A client with the token of a file; closed with the server."""
        file = None if token is None else self.facts["tokens"][token]
        self._opened.append(connect(address or self.facts["address"], token_file=file, **more))
        return self._opened[-1]

    def recipe(self, name: str, output: str | None = None) -> str:
        """A recipe with a folder of its own, or `output`."""
        return str(self.facts["recipes"][name]).replace("OUTPUT", output or uuid.uuid4().hex)

    def drop(self) -> None:
        """Have all connections through the proxy dropped."""
        host, _, port = self.facts["drop"].rpartition(":")
        with socket.create_connection((host, int(port))) as bell:
            assert bell.recv(1) == b""

    @contextmanager
    def calls(self, token: str = "train") -> Iterator[Calls]:
        """The service's own calls, for what no client would ask."""
        metadata = (("authorization", f"Bearer {Path(self.facts['tokens'][token]).read_text().strip()}"),)
        with grpc.insecure_channel(self.facts["address"], options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield Calls(training_rpc.TrainingServiceStub(channel), teacher_rpc.TeacherServiceStub(channel), metadata)

    def close(self) -> None:
        """End all clients."""
        for client in self._opened:
            client.close()


@dataclass
class Calls:
    """The generated stubs, and the metadata of each call."""

    training: Any
    teachers: Any
    metadata: tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A real server with a real tiny model."""
    command = [sys.executable, str(CLIENTS / "serve.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "clients/serve.py ended"
    served = Served(json.loads(line))
    try:
        yield served
    finally:
        served.close()
        process.stdin.close()
        process.stdout.close()
        assert process.wait(90) == 0


@pytest.fixture
def client(served: Served) -> Client:
    """A client of role `train`."""
    return served.client()


@dataclass
class Done:
    """A run of the tiny recipe that has ended, its text, and what a watcher saw over dropped connections."""

    run_id: str
    recipe: str
    events: list[Event]
    drops: int


@pytest.fixture(scope="module")
def done(served: Served) -> Done:
    """Created directly, watched through the proxy, whose connections are dropped while it trains and while it ends."""
    recipe = served.recipe("tiny")
    run_id = served.client().create_run(recipe).run_id
    events: list[Event] = []
    drops = 0
    for event in served.client(address=served.proxy).watch(run_id):
        events.append(event)
        state = event.state_changed.state
        if event.sequence == 1 or (state and state_of(state) in ("training", "evaluating")):
            served.drop()
            drops += 1
    return Done(run_id, recipe, events, drops)


@pytest.fixture(scope="module")
def trains(served: Served) -> Iterator[Callable[[], str]]:
    """Makes the long run train, creating it where there is none that goes on; returns its id."""
    client = served.client()
    known: list[str] = []

    def give() -> str:
        if not known or client.run(known[-1]).ended:
            known.append(client.create_run(served.recipe("long")).run_id)
        if client.run(known[-1]).state in ("pausing", "paused"):
            until(client, known[-1], "paused")
            client.resume(known[-1])
        until(client, known[-1], "training", after=client.run(known[-1]).last_sequence)
        return known[-1]

    yield give
    for run_id in known:
        if not client.run(run_id).ended:
            client.cancel(run_id)
            until(client, run_id, "cancelled")


def until(client: Client, run_id: str, state: str, after: int = 0) -> list[Event]:
    """Events from a cursor on until the run is in a state, or at once where it is."""
    if after and client.run(run_id).state == state:
        return []
    found = []
    with closing(client.watch(run_id, after)) as events:
        for event in events:
            found.append(event)
            if event.state_changed.state and state_of(event.state_changed.state) == state:
                return found
    raise AssertionError(f"it ended without {state}: {states(found)}")


def states(events: list[Event]) -> list[str]:
    """The states that events tell of."""
    return [state_of(event.state_changed.state) for event in events if event.state_changed.state]


@contextmanager
def refused(*reasons: Reason) -> Iterator[list[LimbeckError]]:
    """Expects an error of these reasons, and keeps it."""
    kept: list[LimbeckError] = []
    with pytest.raises(LimbeckError) as caught:
        yield kept
    kept.append(caught.value)
    assert caught.value.reason in reasons, caught.value


def in_background(function: Callable[[], object]) -> threading.Thread:
    """A thread that runs a function."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def words(problem: Problem) -> str:
    """All of a problem's text."""
    return " ".join(filter(None, (problem.file, problem.field, problem.message, problem.hint)))
