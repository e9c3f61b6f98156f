"""A checkpoint is there when it is whole: case C49, kills in the middle of a save, rotation."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from limbeck.training.checkpoints import MANIFEST, Checkpoints


def write(seed: int, size: int = 20_000) -> object:
    def files(folder: Path) -> None:
        for number, name in enumerate(("model.safetensors", "optimizer.pt", "limbeck.json")):
            (folder / name).write_bytes(random.Random(seed + number).randbytes(size))

    return files


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, write(step), {"fingerprint": {}})  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def c49(tmp_path: Path, data: Path) -> Path:
    """The folder that C49 describes."""
    folder = tmp_path / "OUT"
    checkpoints = Checkpoints(folder)
    for line in (data / "C49" / "tree.txt").read_text().splitlines():
        path, what = line.split(" ", 1)
        step = int(path.rsplit("-", 1)[1])
        target = folder / f"checkpoint-{step}"
        save(checkpoints, step)
        if what.startswith("model.safetensors cut to half"):
            os.truncate(target / "model.safetensors", 10_000)
            (target / "limbeck.json").unlink()
        elif what == "empty folder":
            for file in target.iterdir():
                file.unlink()
        elif what == "complete but one byte flipped":
            raw = bytearray((target / "optimizer.pt").read_bytes())
            raw[777] ^= 0x10
            (target / "optimizer.pt").write_bytes(raw)
        else:
            assert what == "complete"
    return folder


def test_c49_the_newest_whole_checkpoint_is_used_and_the_others_are_named(c49: Path) -> None:
    before = names(c49)
    found = Checkpoints(c49).newest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 4
    assert found.rejected == (
        "checkpoint-10: the checksum of optimizer.pt is wrong",
        "checkpoint-8: it is empty",
        "checkpoint-6: limbeck.json is missing",
    )
    assert names(c49) == before


def test_c49_rotation_counts_whole_ones_only_and_never_leaves_none(c49: Path) -> None:
    checkpoints = Checkpoints(c49, limit=1)
    checkpoints.newest()
    save(checkpoints, 5)
    assert "checkpoint-4" not in names(c49)  # 5 is whole, 4 is the older one
    assert {"checkpoint-5", "checkpoint-6", "checkpoint-8", "checkpoint-10"} <= set(names(c49))
    save(checkpoints, 6)
    assert "checkpoint-6.faulty-1" in names(c49)  # what stood in the way is kept
    found = Checkpoints(c49).newest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 6


def test_a_checkpoint_that_only_looks_whole_protects_no_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, limit=2)
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    raw = bytearray((tmp_path / "checkpoint-3" / "optimizer.pt").read_bytes())
    raw[0] ^= 1
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_bytes(raw)
    resumed = Checkpoints(tmp_path, limit=2)
    assert resumed.newest().rejected == ("checkpoint-3: the checksum of optimizer.pt is wrong",)
    save(resumed, 4)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]  # 3 did not take a place of the two


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "renamed", "other format"])
def test_what_a_manifest_does_not_vouch_for_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    manifest = tmp_path / "checkpoint-2" / MANIFEST
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        os.truncate(manifest, 40)
    elif damage == "renamed":
        (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-9")
    else:
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    found = Checkpoints(tmp_path).newest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 1
    assert len(found.rejected) == 1


def test_foreign_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, limit=1)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.clean()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-best", "notes.txt"]


def test_fifty_kills_at_random_moments_of_a_save_never_cost_the_last_whole_one(tmp_path: Path) -> None:
    chance = random.Random(11)
    kills = 0
    newest = 0
    while kills < 50 or newest <= 10:  # a busy machine saves little between two
        child = os.fork()
        if child == 0:
            try:
                checkpoints = Checkpoints(tmp_path, limit=2)
                checkpoints.clean()
                for step in range(newest + 1, newest + 1000):
                    save(checkpoints, step)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.001, 0.08))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        found = Checkpoints(tmp_path).newest()
        assert found.rejected == ()  # a cut save never bears the name of a checkpoint
        if found.checkpoint is None:
            assert newest == 0
            continue
        assert found.checkpoint.step >= newest
        newest = found.checkpoint.step
        for number, name in enumerate(("model.safetensors", "optimizer.pt", "limbeck.json")):
            assert (found.checkpoint.folder / name).read_bytes() == random.Random(newest + number).randbytes(20_000)
    Checkpoints(tmp_path).clean()
    assert all(name.startswith("checkpoint-") for name in names(tmp_path))
