"""A run's history: any cursor, while it grows, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting import history as module
from limbeck.hosting.history import History
from limbeck.hosting.public import Public
from limbeck.hosting.record import Record
from limbeck.runs.events import EventLog
from limbeck.signals.messages import error_message
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

LOGS: list[EventLog] = []


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds that a test reaches."""
    for name, value in (("RECENT_BYTES", 2000), ("BLOCK_BYTES", 1500), ("SLICE_BYTES", 4000), ("AT_ONCE_BYTES", 1000)):
        monkeypatch.setattr(module, name, value)
    yield
    while LOGS:
        LOGS.pop().close()


def new(folder: Path) -> tuple[History, Record, EventLog]:
    record = Record(1, "r", pb.Run(run_id="x"))
    LOGS.append(EventLog(folder / "events.jsonl", "x"))
    return History(record, folder / "events.jsonl", Public()), record, LOGS[-1]


async def all_of(history: History, after: int = 0) -> list[int]:
    found: list[int] = []
    while read := await history.read(found[-1] if found else after, 700):
        assert sum(map(len, read)) <= 700 or len(read) == 1
        found += [ev.Event.FromString(raw).sequence for raw in read]
    return found


def test_every_cursor_gives_what_follows_it(tmp_path: Path) -> None:
    async def main() -> None:
        history, record, log = new(tmp_path)
        for number in range(100):
            log.emit(ev.Progress(done=number, total=100, unit="rows"))
        await history.advance()
        assert history.last == 100
        assert record.run.progress.done == 99
        for after in range(0, 101, 7):
            assert await all_of(history, after) == list(range(after + 1, 101))
        assert sum(len(line.message) for line in history._recent) <= 2000
        assert len(history._blocks) <= module.KEPT_BLOCKS
        for number in range(100, 150):  # blocks that were read grow
            log.emit(ev.Progress(done=number))
            await history.advance()
            assert await all_of(history, number - 60) == list(range(number - 59, number + 2))
        for after in (151, 1000):
            with pytest.raises(LimbeckError) as caught:
                await history.read(after, 100)
            assert caught.value.reason == Reason.CURSOR_INVALID

    asyncio.run(main())


def test_a_second_history_reads_what_it_has_not_seen(tmp_path: Path) -> None:
    """As after a restart: the index has the offset."""

    async def main() -> None:
        history, record, log = new(tmp_path)
        for _ in range(60):
            log.emit(ev.Progress(done=1))
        await history.advance()
        again = History(record, tmp_path / "events.jsonl", Public())
        assert await all_of(again) == list(range(1, 61))
        log.emit(ev.Progress(done=2))
        await again.advance()
        assert record.run.last_sequence == 61
        assert await all_of(again, 55) == list(range(56, 62))

    asyncio.run(main())


def test_nothing_is_told_before_it_is_said_to_be_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        history, _, log = new(tmp_path)
        for _ in range(30):
            log.emit(ev.Progress(done=1))
        await history.advance(12)
        assert history.last == 12
        assert await all_of(history) == list(range(1, 13))
        with (tmp_path / "events.jsonl").open("ab") as file:
            file.write(b'{"sequence": "31", "torn')
        await history.advance()
        assert await all_of(history) == list(range(1, 31))

    asyncio.run(main())


def test_watchers_are_woken_where_more_has_come_than_is_said_to_be_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        history, record, log = new(tmp_path)
        log.emit(ev.Progress(done=1))
        await history.advance()
        record.dirty = False
        bell, asleep = history._bell, asyncio.create_task(history.changed(1, 3600))
        await asyncio.sleep(0)
        for _ in range(3):
            log.emit(ev.Progress(done=1))
        await history.advance(2)
        assert (history.last, bell.is_set(), record.dirty) == (2, True, True)
        await asleep

    asyncio.run(main())


def test_what_was_taken_back_is_not_told_twice(tmp_path: Path) -> None:
    async def main() -> None:
        history, _, log = new(tmp_path)
        for _ in range(5):
            log.emit(ev.Progress(done=1))
        await history.advance()
        log.close()
        lines = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "events.jsonl").write_bytes(b"".join(lines[:4]))
        await history.advance()
        (tmp_path / "events.jsonl").write_bytes(b"".join([*lines, lines[4].replace(b'"5"', b'"6"')]))
        await history.advance()
        assert await all_of(history) == [1, 2, 3, 4, 5, 6]

    asyncio.run(main())


def test_damage_is_told_where_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        history, record, log = new(tmp_path)
        for _ in range(40):
            log.emit(ev.Progress(done=1))
        log.close()
        lines = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
        lines[20] = b"\0" * 50 + b"\n"
        (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(LimbeckError) as caught:
            await history.advance()
        assert caught.value.reason == Reason.LOG_DAMAGED
        assert await all_of(history) == list(range(1, 21))
        record.run.last_sequence = 40  # it was whole when the index was written
        again = History(record, tmp_path / "events.jsonl", Public())
        assert [ev.Event.FromString(raw).sequence for raw in await again.read(15, 10_000)] == list(range(16, 21))
        with pytest.raises(LimbeckError) as caught:
            await again.read(20, 700)
        assert caught.value.reason == Reason.LOG_DAMAGED

    asyncio.run(main())


def test_what_is_gone_is_told_and_not_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        history, record, log = new(tmp_path)
        log.close()
        record.run.last_sequence = 5  # somebody has emptied the file
        for _ in range(2):
            with pytest.raises(LimbeckError) as caught:
                await history.read(0, 700)
            assert caught.value.reason == Reason.LOG_DAMAGED

    asyncio.run(main())


def test_watchers_are_told_no_paths_of_this_machine_whatever_the_file_says(tmp_path: Path) -> None:
    async def main() -> None:
        history, record, log = new(tmp_path)
        said = "no /srv/limbeck/secret/x.bin, see unix:///srv/limbeck/y and PATH:/srv/limbeck/z"
        files = (
            "/srv/limbeck/secret/rows.jsonl",
            "/srv/a b/rows.jsonl",
            "/x/srv a/rows.jsonl",
            "~/srv/rows.jsonl",
            "../srv/rows.jsonl",
        )
        hint = "look at /srv/limbeck/secret/h"
        problems = [Problem(said, file, 3, 9, "/srv/limbeck/secret/f", hint) for file in (*files, "recipe", None)]
        failed = error_message(LimbeckError(Reason.DATA_INVALID, said, problems))
        own = ev.Sample(model="student", prompt="ls /srv/limbeck/a", text="/srv/limbeck/b")
        log.emit(ev.Warning(reason="PREFLIGHT", message=said))
        log.emit(ev.Log(level="WARNING", logger="x", message=said))
        log.emit(ev.Rewound(rejected=[said]))
        log.emit(ev.RunFailed(reason="DATA_INVALID", message=said))
        log.emit(ev.StateChanged(state=ev.RUN_STATE_FAILED, error=failed))
        await history.advance()
        fresh = [ev.Event.FromString(raw) for raw in await history.read(0, 10_000)]
        history.rest()
        again = [ev.Event.FromString(raw) for raw in await history.read(0, 10_000)]
        assert fresh == again
        assert len(fresh) == 5
        assert "srv" not in str(fresh) + str(record.run)
        assert fresh[0].warning.message == "no …/x.bin, see unix://…/y and PATH:…/z"
        assert record.run.error.problems[0].hint == "look at …/h"
        placed = [(problem.file, problem.line, problem.column) for problem in record.run.error.problems]
        assert placed == [("…/rows.jsonl", 3, 9)] * 5 + [("recipe", 3, 9), ("", 3, 9)]
        assert (tmp_path / "events.jsonl").read_text().count("/srv/limbeck/secret/x.bin") == 12
        log.emit(own)
        log.emit(ev.Warning(message="long " * 1_000_000))
        await history.advance()
        assert len((await history.read(6, 700))[0]) < 101_000
        assert ev.Event.FromString((await history.read(5, 700))[0]).sample == own

    asyncio.run(main())


def test_lost_numbers_do_not_hold_a_watcher_up(tmp_path: Path) -> None:
    async def main() -> None:
        history, _, log = new(tmp_path)
        for number in range(60):
            log.sequence += 40 if number == 30 else 0
            log.emit(ev.Progress(done=1))
        await history.advance()
        assert await all_of(history) == [*range(1, 31), *range(71, 101)]

    asyncio.run(main())


def test_watchers_wake_together_and_share_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        history, _, log = new(tmp_path)
        reads = 0
        read_slice = History._read_slice

        def counted(*about: object) -> object:
            nonlocal reads
            reads += 1
            return read_slice(*about)  # type: ignore[arg-type]

        monkeypatch.setattr(History, "_read_slice", counted)
        seen: list[int] = []

        async def watcher() -> None:
            last = 0
            while last < 20:
                await history.changed(last, 60)
                for raw in await history.read(last, 10_000):
                    event = ev.Event.FromString(raw)
                    assert event.sequence == last + 1
                    last = event.sequence
            seen.append(last)

        watchers = [asyncio.create_task(watcher()) for _ in range(64)]
        for _ in range(20):
            log.emit(ev.Progress(done=1))
            await history.advance()
            await asyncio.sleep(0)
        await asyncio.gather(*watchers)
        assert seen == [20] * 64
        assert reads == 20
        assert history.watchers == 0

    asyncio.run(main())
