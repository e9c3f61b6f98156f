"""Files of a run: which there are, and that nothing else can be opened; the handlers' tests go further."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.hosting import artifacts
from limbeck.hosting.artifacts import Digests, find, open_file
from limbeck.runs.stage import Record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("student/config.json", "student/sub/x.bin", "report/index.html", "log.txt", "events.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_files_are_found_by_path_and_are_settled_once_their_stage_is_done(folder):
    assert [one.path for one in find(folder, at_rest=False)] == [
        *("events.jsonl", "log.txt", "report/index.html", "student/config.json", "student/sub/x.bin")
    ]
    assert not any(one.settled for one in find(folder, at_rest=False))
    assert all(one.settled for one in find(folder, at_rest=True))
    Record(folder, "train").write("key", {}, figures={})
    assert [one.path for one in find(folder, at_rest=False) if one.settled] == [
        *("student/config.json", "student/sub/x.bin")
    ]


def test_a_file_is_hashed_once_and_again_when_it_has_changed(folder, monkeypatch):
    read = []
    plain = artifacts._sha256
    monkeypatch.setattr(artifacts, "_sha256", lambda file: read.append(file.path) or plain(file))
    digests = Digests()

    def digest() -> bytes:
        file = open_file(folder, "log.txt")
        try:
            return asyncio.run(digests.of(file))
        finally:
            file.close()

    assert digest() == digest() == hashlib.sha256(b"log.txt").digest()
    assert read == ["log.txt"]
    (folder / "log.txt").write_text("other")
    assert digest() == hashlib.sha256(b"other").digest()
    assert len(read) == 2


def test_a_file_whose_reader_is_gone_is_read_to_its_end_and_only_two_at_a_time(folder, monkeypatch):
    plain, go, reading, most = artifacts._sha256, threading.Event(), [], []

    def slow(file):
        reading.append(file.path)
        most.append(len(reading))
        go.wait()
        reading.remove(file.path)
        return plain(file)

    monkeypatch.setattr(artifacts, "_sha256", slow)

    async def main() -> None:
        digests = Digests()
        files = [open_file(folder, path) for path in ("log.txt", "events.jsonl", "student/config.json")]
        asked = [asyncio.ensure_future(digests.of(file)) for file in files]
        while len(reading) < 2:
            await asyncio.sleep(0.002)
        for task, file in zip(asked[:2], files, strict=False):
            task.cancel()
            await asyncio.wait([task])
            file.close()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, go.set)  # what would go on meanwhile, against the bound, has begun by then
        assert await asked[2] == hashlib.sha256(b"student/config.json").digest()
        files[2].close()
        again = open_file(folder, "log.txt")
        assert await digests.of(again) == hashlib.sha256(b"log.txt").digest()
        again.close()

    asyncio.run(main())
    assert max(most) <= 2


def test_a_file_that_has_become_shorter_while_it_is_read_is_told(folder):
    file = open_file(folder, "log.txt")
    os.truncate(folder / "log.txt", 0)
    with pytest.raises(LimbeckError) as caught:
        file.read(0, 10)
    assert caught.value.reason is Reason.STORE_DAMAGED
    file.close()


def test_no_descriptor_is_left_open_by_a_refusal(folder):
    (folder / "student" / "link").symlink_to("/etc/hostname")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("student/link", "student/sub", "student/sub/gone", "student/config.json/x", "gone/x", "student"):
        with pytest.raises(LimbeckError) as caught:
            open_file(folder, path)
        assert caught.value.reason is Reason.ARTIFACT_UNKNOWN
    with pytest.raises(LimbeckError):
        open_file(folder / "nowhere", "log.txt")
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_so_many_files_are_listed(folder, monkeypatch):
    monkeypatch.setattr(artifacts, "MOST_FILES", 3)
    assert len(find(folder, at_rest=True)) == 3
