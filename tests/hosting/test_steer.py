"""Runs of a host that are paused, resumed, cancelled, and given other knobs, with processes that a script plays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from limbeck.errors import Reason
from limbeck.hosting.record import Record
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

from .conftest import HELD, PATIENCE, TRAINING, Place, create, reach, refused, until, watch


def test_pause_and_resume_of_a_run_that_works(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["metrics", {"loss": 2.0}], *HELD[1:], ["metrics", {"loss": 1.0}])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            first = await host.pause(run_id)
            assert first.state in (ev.RUN_STATE_PAUSING, ev.RUN_STATE_PAUSED)
            await host.pause(run_id)
            await reach(host, run_id, "paused")
            assert (await host.pause(run_id)).state == ev.RUN_STATE_PAUSED
            assert not host.history(run_id).over
            place.go()
            await host.resume(run_id)
            await host.resume(run_id)
            run = await reach(host, run_id, "succeeded")
            assert run.attempt == 2
            assert place.states()[2:] == ["queued", "training", "pausing", "paused", "queued", "succeeded"]
            error = await refused(host.resume(run_id), Reason.RUN_STATE)
            assert "succeeded" in str(error)
            await refused(host.cancel(run_id), Reason.RUN_STATE)
            await watch(host, run_id)

    asyncio.run(main())


@pytest.mark.parametrize("want", ["pause", "cancel"])
def test_a_run_that_does_not_react_is_killed(place: Place, want: str) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["deaf", "go"])
        async with place.hosting(patience=0.05) as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            await getattr(host, want)(run_id)
            state = {"pause": "paused", "cancel": "cancelled"}[want]
            await reach(host, run_id, state)
            assert place.states()[-1] == state

    asyncio.run(main())


def test_a_run_that_is_looked_at_can_be_paused_and_cancelled(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting() as host:
            first = await create(host, place.recipe("r0"), "0")
            second = await create(host, place.recipe("r1"), "1")
            await host.pause(second)  # waits for its turn
            await until(lambda: host._ledger.find(first).process is not None)
            await host.pause(first)
            await reach(host, first, "paused")
            await reach(host, second, "paused")
            await host.cancel(second)
            assert host.get(second).state == ev.RUN_STATE_CANCELLED
            place.go()
            await host.resume(first)
            await reach(host, first, "succeeded")
            assert place.states("r0")[1:] == ["validating", "paused", "validating", "queued", "succeeded"]

    asyncio.run(main())


def test_cancel_wins_over_pause(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["deaf", "go"], ["wait", "never"])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            pausing = asyncio.ensure_future(host.pause(run_id))
            await until(lambda: host._ledger.find(run_id).want == "pause")
            await refused(host.resume(run_id), Reason.RUN_STATE)
            cancelling = asyncio.ensure_future(host.cancel(run_id))
            await until(lambda: host._ledger.find(run_id).want == "cancel")
            await refused(host.pause(run_id), Reason.RUN_STATE)
            place.go()
            await asyncio.gather(pausing, cancelling)
            await reach(host, run_id, "cancelled")

    asyncio.run(main())


@pytest.mark.parametrize("want", ["pause", "cancel"])
def test_a_client_that_goes_while_it_asks_has_asked(place: Place, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            save, asked = host._index.save, asyncio.ensure_future(asyncio.sleep(0))

            async def gone(record: Record) -> None:
                asked.cancel()
                await save(record)

            with monkeypatch.context() as patch:
                patch.setattr(host._index, "save", gone)
                await asked
                asked = asyncio.ensure_future(getattr(host, want)(run_id))
                await asyncio.wait([asked])
            assert asked.cancelled()
            await reach(host, run_id, {"pause": "paused", "cancel": "cancelled"}[want])

    asyncio.run(main())


def test_a_run_that_waits_to_be_looked_at_can_be_paused_and_go_on(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting() as host:
            await create(host, place.recipe())
            run_id = await create(host, place.recipe("runs/b"), "two")
            await until(lambda: host._ledger.find(run_id).task)
            assert (await host.pause(run_id)).state == ev.RUN_STATE_PAUSED
            async with asyncio.timeout(PATIENCE):  # while the other one is looked at
                assert (await host.resume(run_id)).state == ev.RUN_STATE_VALIDATING
            place.go()
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


def test_of_a_run_that_has_ended_nothing_more_is_told_to_come(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "succeeded")
            host._ledger.find(run_id).want = "cancel"  # as while its process, which said its last word, still ends
            error = await refused(host.resume(run_id), Reason.RUN_STATE)
            assert error.problems[0].message == "it is succeeded: it cannot be resumed"
            host._ledger.find(run_id).want = ""

    asyncio.run(main())


def test_knobs_wait_until_they_are_in_force(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        weight = "losses.forward_kl.weight"
        async with place.hosting() as host:
            blocker = await create(host, place.recipe("r0"), "0")
            await reach(host, blocker, "training")
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "queued")
            await host.update_knobs(run_id, {weight: 0.5})
            told = await host.update_knobs(run_id, {weight: 0.25})
            assert {knob.value for knob in told.knobs if knob.name == weight} == {0.25}  # what it begins with
            assert not (place.root / "knobs").exists()
            assert len(host._index.knobs(run_id)) == 2
            place.go()
            await until(lambda: not host._index.knobs(run_id))
            notes = (place.root / "knobs").read_text().splitlines()
            assert [note.split('"weight')[0].split(": ")[-1][:-2] for note in notes] == ["0.5", "0.25"]

    asyncio.run(main())


def test_a_knob_that_was_asked_for_is_no_schedule_s_any_more(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        name = "losses.forward_kl.temperature"
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            assert [knob.name for knob in host.get(run_id).knobs if knob.scheduled] == [name]
            told = await host.update_knobs(run_id, {name: 2.0})
            assert not any(knob.scheduled for knob in told.knobs)
        async with place.hosting() as host:
            assert not any(knob.scheduled for knob in host.get(run_id).knobs)

    asyncio.run(main())


def test_faults_of_knobs_are_told_all_at_once(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            values = {
                "losses.forward_kl.wieght": 1.0,
                "losses.forward_kl.weight": -1.0,
                "losses.cross_entropy.weight": float("nan"),
                "losses.forward_kl.temperature": 1.5,
            }
            error = await refused(host.update_knobs(run_id, values), Reason.KNOB_INVALID)
            assert len(error.problems) == 4
            assert error.problems[0].hint == "did you mean losses.forward_kl.weight?"
            assert "stored are 1, 2" in error.problems[3].message
            assert not host._index.knobs(run_id)
            place.go()
            await reach(host, run_id, "succeeded")
            await refused(host.update_knobs(run_id, {"losses.forward_kl.weight": 1.0}), Reason.RUN_STATE)

    asyncio.run(main())


def test_a_checkpoint_is_saved_of_a_run_that_trains(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["touch", "held"], ["checkpoints"], ["deaf", "go"], ["kill"])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            saved = await host.save_checkpoint(run_id)
            assert (saved.step, saved.bytes) == (3, 10)
            assert [saved] == await host.checkpoints(run_id)
            lost = asyncio.ensure_future(host.save_checkpoint(run_id))
            await until(lambda: host._ledger.find(run_id).saving)
            place.go()
            await refused(lost, Reason.RUN_STATE)
            await refused(host.save_checkpoint(run_id), Reason.RUN_STATE)

    asyncio.run(main())


@pytest.mark.parametrize("end", [["wait", "go"], ["fail", "TRAINING_FAILED"]])
def test_a_run_that_rests_tells_how_far_it_has_come(place: Place, end: list[Any]) -> None:
    def far(run: pb.Run) -> tuple[int, int, str]:
        return run.progress.done, run.progress.total, run.progress.unit

    async def main() -> None:
        place.script(TRAINING, ["progress", 40], ["touch", "held"], end)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            if end[0] == "wait":
                await host.pause(run_id)
            assert far(await reach(host, run_id, "paused" if end[0] == "wait" else "failed")) == (40, 100, "steps")
        place.script(TRAINING, ["progress", 40], ["touch", "held"], ["wait", "go"])
        async with place.hosting() as host:
            assert [far(run) for run in host.list([], 0, "").runs] == [(40, 100, "steps")]
            assert far(await host.resume(run_id)) == (40, 100, "steps")
            await until(lambda: host.get(run_id).attempt == 2)
        async with place.hosting() as host:
            assert far(host.get(run_id)) == (40, 100, "steps")
            place.go()
            assert not (await reach(host, run_id, "succeeded")).HasField("progress")

    asyncio.run(main())
