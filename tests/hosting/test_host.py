"""Runs of a host, from their creation to their end, with processes that a script plays."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.files import AppendLog
from limbeck.hosting import channel, history, ledger, looks, process
from limbeck.hosting.record import Record
from limbeck.runs.events import EventLog
from limbeck.runs.folder import RunFolder
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

from .conftest import PATIENCE, Place, create, reach, until, watch

TRAINING = ["state", "training"]
HELD = [TRAINING, ["touch", "held"], ["wait", "go"]]


async def refused(work: Any, reason: Reason) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        await work
    assert caught.value.reason == reason
    assert "/" not in str(caught.value).replace("runs/", "").replace("log.txt", "")
    return caught.value


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


def test_quotas_hold_and_tell_both_problems(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting(queue=2, per_client=3) as host:
            first = await create(host, place.recipe("r0"), "0")
            await reach(host, first, "training")
            for number in (1, 2):
                await create(host, place.recipe(f"r{number}"), str(number))
            error = await refused(create(host, place.recipe("r3"), "3"), Reason.QUOTA_EXCEEDED)
            assert len(error.problems) == 2
            assert not (place.root / "r3").exists()
            place.go()

    asyncio.run(main())


def test_the_queue_keeps_its_order_and_its_room(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            ids = [await create(host, place.recipe(f"r{number}"), str(number)) for number in range(3)]
            await until(lambda: [host.get(one).queue_position for one in ids] == [0, 1, 2])
            await host.cancel(ids[1])
            assert [host.get(one).queue_position for one in ids] == [0, 0, 1]
            assert host.get(ids[1]).state == ev.RUN_STATE_CANCELLED
            place.go()
            for one in (ids[0], ids[2]):
                await reach(host, one, "succeeded")
            assert place.states("r1") == ["created", "validating", "queued", "cancelled"]
            assert not any(event["attempt"] for event in place.events("r1") if "attempt" in event)

    asyncio.run(main())


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


@pytest.mark.parametrize(
    ("step", "how"), [(["exit", 7], "exit code 7"), (["kill"], "SIGKILL, as the system does where memory runs out")]
)
def test_a_crash_is_told_with_the_last_lines_and_no_paths(place: Place, step: list[Any], how: str) -> None:
    async def main() -> None:
        lines = "all went well\nTraceback: ROOT/runs/a/x.py and /usr/lib/python3/torch.py broke"
        place.script(TRAINING, ["print", lines], step)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "failed")
            assert run.error.reason == Reason.RUN_CRASHED
            text = "\n".join(problem.message for problem in run.error.problems)
            assert how in text
            assert "runs/a/x.py and …/torch.py broke" in text
            assert str(place.root) not in text
            last = place.events()[-1]["state_changed"]
            assert last["error"]["reason"] == Reason.RUN_CRASHED
            assert (await watch(host, run_id))[-1].state_changed.error == run.error
            assert (await host.resume(run_id)).error.reason == ""
            await reach(host, run_id, "failed")
            assert place.states().count("failed") == 2

    asyncio.run(main())


def test_the_last_lines_of_a_crash_are_its_last_and_not_a_list_of_modules(place: Place) -> None:
    async def main() -> None:
        frames = "".join(f'  File "/usr/lib/python3/x{number}.py", line 1 in f\n' for number in range(30))
        modules = f"Extension modules: {', '.join(f'numpy.m{number}' for number in range(2000))} (total: 2000)"
        fault = (
            "\x1b[31mFatal Python error\x1b[0m: \x07Segmentation fault\n\nCurrent thread (most recent call first):\n"
        )
        place.script(TRAINING, ["print", "x" * 9000], ["print", f"{fault}{frames}\n{modules}"], ["exit", 1])
        async with place.hosting() as host:
            run = await reach(host, await create(host, place.recipe()), "failed")
            text = run.error.problems[-1].message
            assert "Fatal Python error: Segmentation fault" in text
            assert text.endswith('…/x29.py", line 1 in f')
            assert "numpy" not in text

    asyncio.run(main())


def test_a_long_log_is_put_aside_before_the_next_attempt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LARGEST_LOG", 100)

    async def main() -> None:
        place.script(TRAINING, ["print", "first" * 30], ["exit", 1])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await reach(host, run_id, "failed")
            place.script(TRAINING, ["print", "first" * 30], ["print", "second"], ["exit", 1])
            await host.resume(run_id)
            await until(lambda: host.get(run_id).attempt == 2)
            run = await reach(host, run_id, "failed")
            assert run.error.problems[-1].message.endswith("second")
            folder = host.folder(run_id)
            assert (folder / "log.old.txt").read_text() == "first" * 30 + "\n"
            assert (folder / "log.txt").read_text().endswith("second\n")

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


def test_a_run_is_not_given_up_since_files_cannot_be_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(folder: Path) -> None:
        place.go("tried")
        raise OSError(errno.EMFILE, "too many open files")

    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            await host.pause(run_id)
            await reach(host, run_id, "paused")
            await until(lambda: host._ledger.find(run_id).process is None)
            with monkeypatch.context() as patch:
                patch.setattr(ledger, "read_identity", none)
                await until((place.root / "tried").exists)
            place.go()
            await host.resume(run_id)
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


def test_a_failure_that_the_run_tells_is_told_once(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING, ["fail", "LOSS_NOT_FINITE"])
        async with place.hosting() as host:
            run = await reach(host, await create(host, place.recipe()), "failed")
            assert run.error.reason == "LOSS_NOT_FINITE"
            assert place.states().count("failed") == 1

    asyncio.run(main())


def test_a_failure_that_the_history_had_no_room_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index knows it; the history tells it as soon as it can be written."""
    append = AppendLog.append

    def full(self: AppendLog, *args: Any, **options: Any) -> None:
        if (place.root / "full").exists():
            raise LimbeckError(Reason.DISK_FULL)
        append(self, *args, **options)

    monkeypatch.setattr(AppendLog, "append", full)

    async def main() -> None:
        place.script(TRAINING, ["touch", "full"], ["mute"])
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "failed")
            assert run.error.reason == Reason.DISK_FULL
            assert not host.history(run_id).over
            assert place.states()[-1] == "training"
        async with place.hosting() as host:  # it is known to the next server too
            assert host.get(run_id).state == ev.RUN_STATE_FAILED
            (place.root / "full").unlink()
            events = await watch(host, run_id)
            assert events[-1].state_changed.error.reason == Reason.DISK_FULL
            assert place.states()[-2:] == ["training", "failed"]
            names = [ev.RunState.Name(one.state)[10:].lower() for one in host.details(run_id).states]
            assert names == place.states()

    asyncio.run(main())


@pytest.mark.parametrize(("check", "reason"), [("bad", "DATA_INVALID"), ("die", "RUN_CRASHED")])
def test_what_a_look_finds_fails_the_run(place: Place, check: str, reason: str) -> None:
    async def main() -> None:
        place.script(check=check)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "failed")
            assert run.error.reason == reason
            if check == "bad":
                assert [(one.message, one.file, one.line) for one in run.error.problems] == [("no rows", "rows", 3)]
            said = await watch(host, run_id)
            assert said[-1].state_changed.error == run.error
            assert str(place.root) not in f"{run.error} {said}"
            assert place.states() == ["created", "validating", "failed"]
            place.script()
            await host.resume(run_id)
            await reach(host, run_id, "succeeded")

    asyncio.run(main())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each process was started for."""
    found: list[str] = []
    start = process.RunProcess.start

    async def noted(words: channel.Start, *given: Any) -> process.RunProcess:
        found.append(words.do)
        return await start(words, *given)

    monkeypatch.setattr(process.RunProcess, "start", noted)
    return found


def test_a_recipe_that_was_just_looked_at_is_not_looked_at_again(place: Place, started: list[str]) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            assert not (await host.validate(place.recipe())).HasField("error")
            run_id = await create(host, place.recipe())
            assert host.get(run_id).state == ev.RUN_STATE_VALIDATING
            await reach(host, run_id, "succeeded")
            assert started == ["check", "run"]
            assert place.states() == ["created", "validating", "queued", "succeeded"]
            assert [one.state for one in host.details(run_id).states][1:3] == [
                ev.RUN_STATE_VALIDATING,
                ev.RUN_STATE_QUEUED,
            ]
            first = await create(host, place.recipe("runs/b"), "two")
            await reach(host, first, "succeeded")
            assert started[2:] == ["check", "run"]
            shutil.rmtree(place.root / "runs" / "b")
            await until(lambda: host._ledger.find(first).expired)
            await reach(host, await create(host, place.recipe("runs/b"), "three"), "succeeded")
            assert started[4:] == ["run"]  # a run's own look is remembered, too
            assert (await host.validate(place.recipe())).resolved
            assert started[5:] == ["check"]  # whoever asks is told what is true now

    asyncio.run(main())


@pytest.mark.parametrize("why", ["late", "bad", "crash", "restart"])
def test_a_recipe_is_looked_at_again(
    place: Place, started: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            await host.validate(place.recipe())
            if why == "late":
                monkeypatch.setattr(looks, "KEPT_SECONDS", 0.0)
            elif why == "bad":
                place.script(check="bad")
                assert (await host.validate(place.recipe())).HasField("error")
            elif why == "crash":
                place.script(check="die")
                await refused(host.validate(place.recipe()), Reason.RUN_CRASHED)
            if why != "restart":
                await reach(host, await create(host, place.recipe()), "succeeded" if why == "late" else "failed")
                assert place.states()[1:3] == ["validating", "queued" if why == "late" else "failed"]
        if why == "restart":
            async with place.hosting() as host:
                await reach(host, await create(host, place.recipe()), "succeeded")
        assert started == {"late": ["check", "check", "run"], "restart": ["check", "check", "run"]}.get(
            why, ["check"] * 3
        )

    asyncio.run(main())


def test_not_more_than_so_many_looks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "MOST", 2)
    known = looks.Looks()
    for recipe in ("a", "b", "a", "c"):
        known.note(recipe, good=True)
    assert [known.good(recipe) for recipe in "abc"] == [True, False, True]


def test_a_recipe_is_looked_at_without_a_trace(place: Place) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            before = sorted(os.listdir(place.root))
            found = await host.validate(place.recipe())
            assert not found.HasField("error")
            assert found.resolved == '{"output": "a"}'
            bad = await host.validate(place.recipe().replace("forward_kl", "forward_k"))
            assert bad.error.problems[0].line == 5
            place.script(check="bad")
            rows = (await host.validate(place.recipe())).error
            assert (rows.reason, rows.problems[0].file, rows.problems[0].line) == ("DATA_INVALID", "rows", 3)
            place.script(check="die")
            error = await refused(host.validate(place.recipe()), Reason.RUN_CRASHED)
            assert "exit code 7" in str(error)
            assert sorted(os.listdir(place.root)) == before

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


def test_pages_hold_while_runs_come(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place.script()
        async with place.hosting() as host:
            ids = [await create(host, place.recipe(f"r{number}"), str(number)) for number in range(5)]
            for one in ids:
                await reach(host, one, "succeeded")
            page = host.list([], 2, "")
            seen = [run.run_id for run in page.runs]
            place.script(check="hang")
            late = await create(host, place.recipe("late"), "late")
            while page.next_page_token:
                page = host.list([], 2, page.next_page_token)
                seen += [run.run_id for run in page.runs]
            assert seen == ids[::-1]
            with monkeypatch.context() as patch:
                patch.setattr("limbeck.hosting.host.PAGE_BYTES", 10)  # they say too much for a page
                page, seen = host.list([], 2, ""), []
                while page.next_page_token:
                    seen += [run.run_id for run in page.runs]
                    page = host.list([], 2, page.next_page_token)
                assert [*seen, *(run.run_id for run in page.runs)] == [late, *ids[::-1]]
            only = host.list([ev.RUN_STATE_VALIDATING], 0, "")
            assert [run.run_id for run in only.runs] == [late]
            for token in ("nonsense", "YmVsb3cgeA=="):
                with pytest.raises(LimbeckError) as caught:
                    host.list([], 0, token)
                assert caught.value.reason == Reason.REQUEST_INVALID
            with pytest.raises(LimbeckError) as caught:
                host.get("nobody")
            assert caught.value.reason == Reason.RUN_UNKNOWN

    asyncio.run(main())


def test_a_history_that_cannot_be_read_for_a_while_is_taken_in_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*about: Any) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            await host.pause(run_id)
            await reach(host, run_id, "paused")
            await until(lambda: host._ledger.find(run_id).task is None)
            with monkeypatch.context() as patch:
                patch.setattr(history, "_read_slice", none)
                await host.cancel(run_id)
                assert place.states()[-2:] == ["paused", "cancelled"]
            await reach(host, run_id, "cancelled")
            assert place.states().count("cancelled") == 1

    asyncio.run(main())


def test_a_link_that_a_run_has_left_leads_the_server_nowhere(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        outside = place.root.parent / "outside"
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            await host.pause(run_id)
            await reach(host, run_id, "paused")
            await until(lambda: host._ledger.find(run_id).task is None)
            events = place.root / "runs" / "a" / "events.jsonl"
            lock = events.with_name(".lock")
            outside.write_bytes(b"precious")
            lock.unlink()
            lock.symlink_to(outside)
            assert (await host.cancel(run_id)).state == ev.RUN_STATE_CANCELLED
            assert outside.read_bytes() == b"precious"
            events.replace(outside)
            events.symlink_to(outside)
            history = host.history(run_id)
            history.rest()
            for _ in range(2):
                with pytest.raises(LimbeckError) as caught:
                    await history.read(0, 1000)
                assert caught.value.reason == Reason.LOG_DAMAGED

    asyncio.run(main())


def test_the_oldest_runs_make_room(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting(keep_runs=2) as host:
            ids = []
            for number in range(4):
                ids.append(await create(host, place.recipe(f"r{number}"), str(number)))
                await reach(host, ids[-1], "succeeded")
            await until(lambda: not (place.root / "r1").exists())
            assert not (place.root / "r0").exists()
            assert (place.root / "r2").exists()
            first = host.get(ids[0])
            assert first.state == ev.RUN_STATE_SUCCEEDED
            assert first.oldest_sequence == first.last_sequence + 1
            for after in (None, 0, 2):
                with pytest.raises(LimbeckError) as caught:
                    await host.history(ids[0]).read(after, 100)
                assert caught.value.reason == Reason.CURSOR_INVALID
            with pytest.raises(LimbeckError) as caught:
                host.folder(ids[0])
            assert caught.value.reason == Reason.ARTIFACT_UNKNOWN
            assert await create(host, place.recipe("r0"), "0") == ids[0]  # the request is known for good
            again = await create(host, place.recipe("r0"), "again")  # its folder is free
            assert again != ids[0]
            await reach(host, again, "succeeded")
        assert not list(place.root.glob(f".run-{ids[0]}.yaml"))

    asyncio.run(main())


def test_the_oldest_runs_make_room_by_their_size_but_the_newest_stays(place: Place) -> None:
    async def main() -> None:
        place.script(TRAINING)
        async with place.hosting(keep_gib=1e-9) as host:  # smaller than any
            for name in ("a", "b", "c"):
                await reach(host, await create(host, place.recipe(f"runs/{name}"), name), "succeeded")
            await until(lambda: [path.name for path in (place.root / "runs").iterdir()] == ["c"])
            await host._retention.apply()
            gone = [run.oldest_sequence > run.last_sequence for run in host.list([], 0, "").runs]
            assert gone == [False, True, True]

    asyncio.run(main())


def test_a_look_that_takes_too_long_is_ended_and_says_so(place: Place) -> None:
    async def main() -> None:
        place.script(check="hang")
        async with place.hosting(check_seconds=0.5) as host:
            run = await reach(host, await create(host, place.recipe()), "failed")
            assert run.error.problems[0].message == "it ended by this server: a look at a recipe may take 0.5 s"
            error = await refused(host.validate(place.recipe("runs/b")), Reason.RUN_CRASHED)
            assert "may take 0.5 s" in str(error)

    asyncio.run(main())


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


def test_no_process_is_left(place: Place) -> None:
    async def main() -> None:
        place.script(*HELD)
        async with place.hosting() as host:
            run_id = await create(host, place.recipe())
            await until((place.root / "held").exists)
            process = host._ledger.find(run_id).process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            await reach(host, run_id, "failed")
            with pytest.raises(ProcessLookupError):
                os.kill(process.pid, 0)

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
