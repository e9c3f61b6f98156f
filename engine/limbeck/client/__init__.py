"""The client of `limbeck serve`: teachers and stored signals of another machine. Needs no torch.

::

    with connect("127.0.0.1:7411") as client:
        for item_id, signal in client.score("gemma", items, Want(top_k=64)):
            ...
"""

from limbeck.client.aio import AsyncClient, RemoteDataset, RemoteTeacher, connect_async
from limbeck.client.calls import Expectation
from limbeck.client.replay import StoredSignal
from limbeck.client.sync import Client, connect
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, Want

__all__ = [
    "AsyncClient",
    "Client",
    "Completion",
    "Expectation",
    "Prompt",
    "RemoteDataset",
    "RemoteTeacher",
    "Sampling",
    "ScoreItem",
    "StoredSignal",
    "Want",
    "connect",
    "connect_async",
]
