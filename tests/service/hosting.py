"""Hosts with real worker processes for tests, and what their teachers wrote down."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import LimbeckError
from limbeck.plugins import load_plugins
from limbeck.recipe import Bound
from limbeck.service.host import TeacherHost
from limbeck.v1 import teacher_service_pb2 as pb

DATA = Path(__file__).parents[1] / "data"
TOP = pb.Want(top_k=4, temperatures=[1.0, 2.0], target=True)
Make = Callable[..., Bound]  # the fixture `nursery`
PATIENCE = 60.0  # seconds after which something will not come any more


def bound(plugin: str, **config: Any) -> Bound:
    """A teacher as a file of the server names it."""
    entry = load_plugins().entry("teacher", plugin)
    return Bound(entry, entry.plugin.config.model_validate(config), "teacher")


def ids(length: int, seed: int = 0) -> np.ndarray:
    """Ids of a made-up text of tok_a, <bos> first."""
    made = np.random.default_rng(seed).integers(5, 261, length).astype("<i4")
    made[0] = 2
    return made


def item(item_id: int, length: int = 6, **more: Any) -> pb.ScoreItem:
    """An item whose rows but the last are asked."""
    return pb.ScoreItem(item_id=item_id, **({"ids": ids(length, item_id).tobytes(), "n": length - 1} | more))


def prompt(item_id: int, length: int = 6) -> pb.Prompt:
    """A prompt."""
    return pb.Prompt(item_id=item_id, ids=ids(length, item_id).tobytes())


class Box:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.parts: dict[int, list[bytes]] = {}
        self.complete: list[int] = []
        self.failures: dict[int, LimbeckError] = {}

    def answer(self, item_id: int, response: bytes, cost: int, last: bool) -> None:
        """A piece."""
        assert item_id not in self.complete
        self.parts.setdefault(item_id, []).append(response)
        if last:
            self.complete.append(item_id)

    def failed(self, item_id: int, error: LimbeckError) -> None:
        """No piece."""
        assert item_id not in self.failures
        self.failures[item_id] = error

    async def told(self, count: int) -> None:
        """Wait until as many items are answered or failed."""
        await until(lambda: len(self.complete) + len(self.failures) >= count)

    def fragments(self, item_id: int) -> list[pb.Fragment]:
        """The answer of an item."""
        return [pb.ScoreResponse.FromString(part).fragment for part in self.parts[item_id]]

    def completion(self, item_id: int) -> pb.Completion:
        """The text of a prompt."""
        (part,) = self.parts[item_id]
        return pb.GenerateResponse.FromString(part).completion


async def until(good: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not good():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def hosted(teacher: Bound, **more: Any) -> AsyncIterator[TeacherHost]:
    """A host that has been started."""
    host = TeacherHost("mine", teacher, log=logging.getLogger("tests.service"), **more)
    try:
        await host.start()
        yield host
    finally:
        await host.close()


class Diary:
    """What a nursery teacher wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self, what: str) -> list[dict[str, Any]]:
        """Its notes of one kind."""
        path = self.folder / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def items(self, kind: str = "score") -> list[list[int]]:
        """Items of each batch."""
        return [note["items"] for note in self.all(kind)]

    def pid(self, what: str = "born") -> int:
        """Of the last process noted so."""
        return int(self.all(what)[-1]["pid"])

    def open(self) -> None:
        """The gate."""
        (self.folder / "gate").touch()

    def kill(self, signal: int) -> None:
        """The worker."""
        os.kill(self.pid(), signal)
