"""Runs of a host that fail or die, and files that cannot be opened, read or written."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.files import AppendLog
from limbeck.hosting import ledger, process
from limbeck.hosting.history import History
from limbeck.v1 import event_pb2 as ev

from .conftest import HELD, TRAINING, Place, create, reach, until, watch


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


def test_a_log_that_cannot_be_read_keeps_no_run_from_its_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*about: Any) -> bytes:
        raise OSError(errno.EIO, "the disk fails")

    async def main() -> None:
        place.script(TRAINING, ["print", "last words"], ["exit", 7])
        async with place.hosting() as host:
            monkeypatch.setattr(os, "pread", fails)
            run_id = await create(host, place.recipe())
            run = await reach(host, run_id, "failed")
            assert [problem.message for problem in run.error.problems] == ["it ended with exit code 7"]
            await until(lambda: host._ledger.find(run_id).process is None)

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
            since = run.since
            assert "no space left for step 7" in run.error.problems[-1].message  # what its process said last
            assert not host.history(run_id).over
            assert host.history(run_id).behind
            assert place.states()[-1] == "training"
        async with place.hosting() as host:  # it is known to the next server too
            assert host.get(run_id).state == ev.RUN_STATE_FAILED
            (place.root / "full").unlink()
            events = await watch(host, run_id)
            assert events[-1].state_changed.error.reason == Reason.DISK_FULL
            assert events[-1].time == since  # when it failed, not when there was room to tell it
            assert place.states()[-2:] == ["training", "failed"]
            names = [ev.RunState.Name(one.state)[10:].lower() for one in host.details(run_id).states]
            assert names == place.states()

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
                patch.setattr(History, "_read_slice", none)
                await host.cancel(run_id)
                assert place.states()[-2:] == ["paused", "cancelled"]
                assert host._ledger.find(run_id).damaged
            await reach(host, run_id, "cancelled")
            await until(lambda: not host._ledger.find(run_id).damaged)  # the next time is told of too
            assert place.states().count("cancelled") == 1

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
                assert [problem.file for problem in caught.value.problems] == ["runs/a/events.jsonl"]

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
