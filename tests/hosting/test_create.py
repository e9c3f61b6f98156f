"""Runs of a host from their creation to their turn: what is made of a request, and what is refused."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.files import AppendLog
from limbeck.v1 import event_pb2 as ev

from .conftest import HELD, TRAINING, Place, create, reach, refused, until, watch


def test_a_run_is_checked_queued_run_and_told_of(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["metrics", {"loss": 2.0, "knobs.losses.forward_kl.temperature": 1.0}])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "succeeded")
            assert run.metrics["loss"] == 2.0
            assert (run.output, run.owner, run.attempt, run.oldest_sequence) == ("runs/a", "me", 1, 1)
            knobs = {knob.name: knob for knob in run.knobs}
            assert knobs["losses.forward_kl.temperature"].value == 1.0
            assert list(knobs["losses.forward_kl.temperature"].values) == [1.0, 2.0]
            assert knobs["losses.forward_kl.temperature"].scheduled
            assert knobs["losses.cross_entropy.weight"].value == 0.1
            details = host.details(run_id)
            assert details.recipe == place.recipe()
            told = [ev.RunState.Name(one.state)[10:].lower() for one in details.states]
            assert told == place.states() == ["created", "validating", "queued", "training", "succeeded"]
            events = await watch(host, run_id)
            assert len(events) == run.last_sequence == len(place.events())
            assert [event.attempt for event in events[:4]] == [0, 0, 0, 1]
            assert host.history(run_id).over

    asyncio.run(main())


def test_the_same_request_makes_one_run(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            first, second = await asyncio.gather(*(create(host, place.recipe()) for _ in range(2)))
            assert first == second == await create(host, place.recipe())
            other = await refused(create(host, place.recipe("runs/b")), Reason.RUN_EXISTS)
            assert other.problems[0].field == "request_id"
            taken = await refused(create(host, place.recipe(), "two"), Reason.RUN_EXISTS)
            assert taken.problems[0].field == "output"
            assert await create(host, place.recipe("runs/b"), owner="you") != first
            assert len(host.list([], 0, "").runs) == 2

    asyncio.run(main())


@pytest.mark.parametrize("output", ["runs/a/deeper", "runs"])
def test_runs_do_not_share_folders(place: Place, output: str) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            await create(host, place.recipe())
            with pytest.raises(LimbeckError) as caught:
                await create(host, place.recipe(output), "two")
            assert caught.value.reason in (Reason.RUN_EXISTS, Reason.RECIPE_INVALID)
            assert len(host.list([], 0, "").runs) == 1

    asyncio.run(main())


def test_a_folder_with_something_else_is_left_alone(place: Place) -> None:
    async def main() -> None:
        place.script()
        (place.root / "runs" / "a").mkdir(parents=True)
        (place.root / "runs" / "a" / "diary").write_text("mine")
        async with place.hosting() as host:
            await refused(create(host, place.recipe()), Reason.FOLDER_NOT_OURS)
            assert os.listdir(place.root / "runs" / "a") == ["diary"]
            assert not host.list([], 0, "").runs

    asyncio.run(main())


def test_a_full_disk_makes_no_half_of_a_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    append = AppendLog.append

    def full(self: AppendLog, *args: Any, **options: Any) -> None:
        if self.count == 1 and not (place.root / "room").exists():  # there was room for the first event
            raise LimbeckError(Reason.DISK_FULL)
        append(self, *args, **options)

    monkeypatch.setattr(AppendLog, "append", full)

    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            await refused(create(host, place.recipe()), Reason.DISK_FULL)
            assert not host.list([], 0, "").runs
            assert not (place.root / "runs" / "a").exists()
            assert not list(place.root.glob(".run-*"))
            place.go("room")
            await reach(host, await create(host, place.recipe()), "succeeded")

    asyncio.run(main())


def test_whoever_finds_a_run_that_is_just_noted_finds_the_one_that_is_made(place: Place) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            add, found = host._index.add, []

            async def noted(record: Any, recipe: str) -> None:
                await add(record, recipe)
                found.extend(host.list([], 0, "").runs)
                found.append(host._ledger.find(record.run_id) is record)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(host._index, "add", noted)
                run_id = await create(host, place.recipe())
            assert [one if isinstance(one, bool) else one.run_id for one in found] == [run_id, True]
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


@pytest.mark.parametrize("full", [False, True])
def test_a_run_that_cannot_be_noted_is_not_known(place: Place, full: bool) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:

            async def refuse(*about: Any) -> None:
                raise LimbeckError(Reason.DISK_FULL) if full else RuntimeError

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(host._index, "add", refuse)
                with pytest.raises(LimbeckError if full else RuntimeError):
                    await create(host, place.recipe())
            assert not host._ledger.records
            await reach(host, await create(host, place.recipe()), "succeeded")

    asyncio.run(main())


@pytest.mark.parametrize("moment", range(4))
def test_a_client_that_goes_while_its_run_is_made_leaves_no_half_of_one(place: Place, moment: int) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            asked = asyncio.ensure_future(create(host, place.recipe()))
            await until(lambda: host._ledger.records)
            folder = place.root / "runs" / "a"
            seen = [lambda: True, folder.exists, (folder / "run.json").exists, (folder / "events.jsonl").exists]
            await until(seen[moment])
            asked.cancel()
            await asyncio.wait([asked])
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "succeeded")
            assert place.states()[:3] == ["created", "validating", "queued"]

    asyncio.run(main())


def test_a_request_that_is_repeated_while_it_fails_makes_no_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: AppendLog, *args: Any, **options: Any) -> None:
        place.go("tried")
        wait_for(place.root / "go")
        raise LimbeckError(Reason.DISK_FULL)

    monkeypatch.setattr(AppendLog, "append", full)

    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            first = asyncio.ensure_future(create(host, place.recipe()))
            await until((place.root / "tried").exists)
            second = asyncio.ensure_future(create(host, place.recipe()))
            await asyncio.sleep(0)
            place.go()
            for one in (first, second):
                await refused(one, Reason.DISK_FULL)
            assert not host.list([], 0, "").runs
            assert not host._ledger.records

    asyncio.run(main())


def wait_for(file: Path) -> None:
    """In a thread."""
    while not file.exists():
        time.sleep(0.002)
