"""A host that ends in order and the next one, and runs that are handled beside it by hand."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.hosting import works
from limbeck.hosting.recovery import Recovery
from limbeck.runs.events import EventLog
from limbeck.runs.folder import RunFolder
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

from .conftest import TRAINING, Place, create, reach, refused, until, watch


def test_one_server_for_a_workspace(place: Place) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting():
            with pytest.raises(LimbeckError, match="another server") as caught:
                await place.host().start()
            assert caught.value.reason == Reason.SERVER_INVALID
        assert (place.root / ".limbeck" / "runs.sqlite").stat().st_mode & 0o777 == 0o600
        assert (place.root / ".limbeck").stat().st_mode & 0o777 == 0o700
        async with place.hosting():
            pass
        (place.root / ".limbeck").rename(place.root.parent / "elsewhere")
        (place.root / ".limbeck").symlink_to(place.root.parent / "elsewhere")
        with pytest.raises(LimbeckError, match="is a link") as caught:
            await place.host().start()
        assert caught.value.reason == Reason.SERVER_INVALID

    asyncio.run(main())


def test_a_start_that_fails_leaves_nothing_open(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Recovery) -> None:
        raise RuntimeError("a fault of ours")

    async def main() -> None:
        opened = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(Recovery, "run", fails)
            with pytest.raises(RuntimeError):
                await place.host().start()
        assert len(os.listdir("/proc/self/fd")) == opened
        async with place.hosting():
            pass

    asyncio.run(main())


def test_a_host_that_is_closed_has_no_thread_that_reads_recipes(place: Place) -> None:
    async def main() -> None:
        place.script()
        before = set(threading.enumerate())
        async with place.hosting() as host:
            await reach(host, await create(host, place.recipe()), "succeeded")
            (reader,) = (one for one in set(threading.enumerate()) - before if one.name.startswith("limbeck-recipe"))
        await asyncio.to_thread(reader.join)

    asyncio.run(main())


@pytest.mark.parametrize("restart", [pb.RESTART_POLICY_RESUME, pb.RESTART_POLICY_FAIL])
@pytest.mark.parametrize("deaf", [False, True])
def test_a_server_that_ends_in_order(place: Place, restart: pb.RestartPolicy, deaf: bool) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["deaf" if deaf else "wait", "go"])
        async with place.hosting(grace=0.1 if deaf else 30) as host:
            run_id = await create(host, place.recipe(), restart=restart)
            waits = await create(host, place.recipe("runs/b"), "two")
            await until((place.root / "held").exists)
            await reach(host, waits, "queued")
        fails = restart == pb.RESTART_POLICY_FAIL
        assert place.states()[-1] == ("failed" if fails else "queued")
        place.go()
        async with place.hosting() as host:
            await reach(host, waits, "succeeded")
            await reach(host, run_id, "failed" if fails else "succeeded")
            if fails:
                await host.resume(run_id)
                await reach(host, run_id, "succeeded")
            assert len(await watch(host, run_id)) == len(place.events())

    asyncio.run(main())


def test_a_server_ends_though_a_look_at_a_recipe_does_not(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting(grace=0.1) as host:
            looks = [asyncio.ensure_future(host.validate(place.recipe(f"runs/{name}"))) for name in "bc"]
            await until(lambda: host._works._looking)
            await create(host, place.recipe())  # it waits for its turn to be looked at
        for look in looks:
            await refused(look, Reason.SERVER_UNAVAILABLE)
        assert place.states() == ["created", "validating"]

    asyncio.run(main())


def test_a_server_ends_when_the_folders_are_removed_that_its_last_run_makes_too_many(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["deaf", "go"])
        async with place.hosting(grace=0.1) as host:
            done: list[int] = []

            async def apply() -> None:
                for _ in range(100):
                    await asyncio.sleep(0)
                done.append(1)

            await create(host, place.recipe())
            await until((place.root / "held").exists)
            done.clear()
            monkeypatch.setattr(host._retention, "apply", apply)
            await host._works.close(0.1)
            assert done == [1]

    asyncio.run(main())


def test_a_run_that_is_resumed_by_hand_is_followed(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["fail", "SCORING_FAILED"])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "failed")
            await until(lambda: host._ledger.find(run_id).task is None)
            with RunFolder(place.root / "runs" / "a") as folder, EventLog(folder.events, run_id) as log:
                log.emit(ev.StateChanged(state=ev.RUN_STATE_TRAINING))
                await reach_by_hand(host, run_id)
                await refused(host.pause(run_id), Reason.RUN_STATE)
                log.emit(ev.StateChanged(state=ev.RUN_STATE_SUCCEEDED))
            await until(lambda: host.get(run_id).state == ev.RUN_STATE_SUCCEEDED)
            await watch(host, run_id)

    async def reach_by_hand(host: Any, run_id: str) -> None:
        await until(lambda: host.get(run_id).state == ev.RUN_STATE_TRAINING)

    asyncio.run(main())


def test_a_run_that_is_done_by_hand_during_its_look_stays_done(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            record = host._ledger.find(run_id)
            await until(lambda: record.process)
            with RunFolder(place.root / "runs" / "a") as folder, EventLog(folder.events, run_id) as log:
                log.emit(ev.StateChanged(state=ev.RUN_STATE_SUCCEEDED))
            place.go()
            await until(lambda: record.task is None)
            assert host.get(run_id).state == ev.RUN_STATE_SUCCEEDED
            assert place.states() == ["created", "validating", "succeeded"]

    asyncio.run(main())


def test_a_run_whose_folder_is_held_when_its_look_ends_is_queued_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(works, "LOCKED_SECONDS", 3600.0)

    async def main() -> None:
        place.script(check="hang")
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            record = host._ledger.find(run_id)
            await until(lambda: record.process)
            with RunFolder(place.root / "runs" / "a"):
                for _ in range(2):  # the second time its look is remembered
                    place.go()
                    await until(lambda: record.not_before and record.task is None)
                    assert (record.state, record.checked, record.turn) == (ev.RUN_STATE_VALIDATING, False, 0)
                    record.not_before = 0.0
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


def test_a_run_by_hand_that_dies_is_found(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["fail", "SCORING_FAILED"])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "failed")
            await until(lambda: host._ledger.find(run_id).task is None)
            with RunFolder(place.root / "runs" / "a") as folder, EventLog(folder.events, run_id) as log:
                log.emit(ev.StateChanged(state=ev.RUN_STATE_TRAINING))
                await until(lambda: host.get(run_id).state == ev.RUN_STATE_TRAINING)
            await until(lambda: host.get(run_id).state == ev.RUN_STATE_FAILED)
            assert host.get(run_id).error.reason == Reason.RUN_CRASHED

    asyncio.run(main())


def test_a_folder_that_is_removed_by_hand(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "succeeded")
            shutil.rmtree(place.root / "runs" / "a")
            await until(lambda: host.get(run_id).oldest_sequence > host.get(run_id).last_sequence)
            assert host.get(run_id).state == ev.RUN_STATE_SUCCEEDED
            assert await create(host, place.recipe(), "again") != run_id

    asyncio.run(main())
