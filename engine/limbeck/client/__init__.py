"""The client of `limbeck serve`: teachers, stored signals and runs of another machine. Needs no torch.

::

    with connect("127.0.0.1:7411") as client:
        for item_id, signal in client.score("gemma", items, Want(top_k=64)):
            ...
        run = client.create_run(Path("recipe.yaml"))
        for event in client.watch(run.run_id):
            ...
        client.fetch(run.run_id, "here")
"""

from limbeck.client.aio import AsyncClient, RemoteDataset, RemoteTeacher, connect_async
from limbeck.client.calls import Expectation
from limbeck.client.fetch import Fetching
from limbeck.client.records import (
    Artifact,
    Checkpoint,
    FailedPlugin,
    Knob,
    Plugins,
    RemotePlugin,
    RestartPolicy,
    Run,
    RunDetails,
    RunProgress,
    RunState,
    StateTime,
    Validation,
)
from limbeck.client.replay import StoredSignal
from limbeck.client.sync import Client, connect
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, Want
from limbeck.v1.event_pb2 import Event

__all__ = [
    "Artifact",
    "AsyncClient",
    "Checkpoint",
    "Client",
    "Completion",
    "Event",
    "Expectation",
    "FailedPlugin",
    "Fetching",
    "Knob",
    "Plugins",
    "Prompt",
    "RemoteDataset",
    "RemotePlugin",
    "RemoteTeacher",
    "RestartPolicy",
    "Run",
    "RunDetails",
    "RunProgress",
    "RunState",
    "Sampling",
    "ScoreItem",
    "StateTime",
    "StoredSignal",
    "Validation",
    "Want",
    "connect",
    "connect_async",
]
