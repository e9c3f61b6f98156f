"""The store: what is written comes back, whatever is cut, killed, filled up or flipped."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Reason
from limbeck.signals import Signal, SignalHeader, SignalStore, SignalWriter, TopK


def header(**changes: Any) -> SignalHeader:
    values: dict[str, Any] = {"vocab_size": 262_144, "k": 8, "temperatures": (1.0, 2.0), "target": True}
    values |= {"tokenizer_digest": "aa", "template_digest": None, "weights_digest": "bb", "teacher": "t"}
    return SignalHeader(**values | changes)


def sequence(index: int) -> TokenSequence:
    length = 6 + index % 5
    trained = np.zeros(length, bool)
    trained[3:] = True
    ids = np.random.default_rng(index).integers(0, 1000, length).astype(np.int32)
    return TokenSequence(index, ids, trained, np.zeros((length, 2), np.int32), "rows.jsonl", index + 1)


def signal(seq: TokenSequence) -> Signal:
    draw = np.random.default_rng(seq.index + 1000)
    p = draw.dirichlet(np.full(9, 0.5), seq.n) + 1e-9
    p /= p.sum(axis=1, keepdims=True)
    ids = np.argsort(draw.random((seq.n, 500)), axis=1)[:, :8] * 400
    tails = np.stack([np.log(p[:, 8]), np.log(p[:, 8]) / 2], axis=1)
    target = (-draw.exponential(size=seq.n)).astype(np.float32)
    top = TopK.from_logprobs(ids, np.log(p[:, :8]), tails, (1.0, 2.0))
    return Signal(seq.first_row, seq.n, top_k=top, target=target)


def fill(folder: Path, count: int, each: int = 4) -> list[str]:
    """Label what is not labelled yet, `each` sequences a shard, as the label stage does. Returns what was repaired."""
    with SignalWriter(folder, header()) as writer:
        for index in range(count):
            if index not in writer.done:
                writer.add(sequence(index), signal(sequence(index)))
            if index % each == each - 1:
                writer.commit()
    return writer.repaired


def check_all(folder: Path, count: int) -> None:
    stored = SignalStore(folder)
    assert stored.indexes == frozenset(range(count))
    assert stored.verify() == []
    for index in range(count):
        got, expected = stored.get(sequence(index)), signal(sequence(index))
        assert (got.first_row, got.n) == (expected.first_row, expected.n)
        assert got.top_k is not None
        assert expected.top_k is not None
        assert (got.top_k.ids == expected.top_k.ids).all()
        assert (got.top_k.u == expected.top_k.u).all()
        assert (got.top_k.tails == expected.top_k.tails).all()
        assert got.target is not None
        assert got.target.tolist() == expected.target.tolist()  # type: ignore[union-attr]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals") / "train"
    fill(folder, 18)
    return folder


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "train"))


# ------------------------------------------------------------------------------------------------------- whole


def test_what_is_written_is_read_back(filled: Path) -> None:
    check_all(filled, 18)
    stored = SignalStore(filled)
    assert stored.header == header()
    assert stored.bytes == sum(path.stat().st_size for path in shards(filled))
    assert len(shards(filled)) == 5


def test_a_shard_is_an_arrow_file_with_the_wire_bytes_and_its_header(filled: Path) -> None:
    import pyarrow as pa

    from limbeck.signals.codec import encode

    with pa.ipc.open_file(pa.memory_map(str(shards(filled)[1]))) as reader:
        table = reader.read_all()
        assert SignalHeader.from_json(json.loads(reader.schema.metadata[b"limbeck.signals"])) == header()
    assert table["index"].to_pylist() == [4, 5, 6, 7]
    for row, index in enumerate(range(4, 8)):
        fields = encode(signal(sequence(index)), header()).fields
        assert {name: table[name][row].as_py() for name in fields} == fields


def test_the_order_of_adding_changes_no_byte(tmp_path: Path) -> None:
    for name, order in (("a", [3, 0, 2, 1]), ("b", [0, 1, 2, 3])):
        with SignalWriter(tmp_path / name, header()) as writer:
            for index in order:
                writer.add(sequence(index), signal(sequence(index)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_store_is_read_while_it_is_written(tmp_path: Path) -> None:
    with SignalWriter(tmp_path, header()) as writer:
        assert SignalStore(tmp_path).indexes == frozenset()
        writer.add(sequence(5), signal(sequence(5)))
        assert SignalStore(tmp_path).indexes == frozenset()
        assert writer.done == {5}
        writer.commit()
        assert SignalStore(tmp_path).get(sequence(5)).n == sequence(5).n


def test_a_writer_commits_by_itself_when_much_is_pending(tmp_path: Path) -> None:
    with SignalWriter(tmp_path, header(), shard_bytes=1000) as writer:
        for index in range(12):
            writer.add(sequence(index), signal(sequence(index)))
    assert len(shards(tmp_path)) > 2
    check_all(tmp_path, 12)


def test_many_shards_hold_no_file_open_and_a_store_travels_to_workers(tmp_path: Path) -> None:
    fill(tmp_path, 10, each=1)
    stored = SignalStore(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for index in range(10):
        stored.get(sequence(index))
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
    sent = pickle.loads(pickle.dumps(stored))
    got = sent.get(sequence(3)).top_k
    del stored, sent
    assert (got.u == signal(sequence(3)).top_k.u).all()  # type: ignore[union-attr]  # outlives its store


# ---------------------------------------------------------------------------------------- rows and signals match


def other(seq: TokenSequence, **changes: Any) -> TokenSequence:
    values = {name: getattr(seq, name) for name in TokenSequence.__slots__}
    return TokenSequence(**values | changes)


def test_a_signal_is_given_only_to_the_tokens_it_was_captured_for(filled: Path) -> None:
    stored, seq = SignalStore(filled), sequence(3)
    changed = seq.ids.copy()
    changed[1] += 1
    wider = seq.trained.copy()
    wider[1:] = True
    fewer = seq.trained.copy()
    fewer[:5] = False
    assert stored.get(other(seq, trained=fewer)).n == seq.n
    cases = {
        "its signal was captured for 9 other ones": other(seq, ids=changed),
        "has 8 tokens": other(seq, ids=seq.ids[:-1], trained=seq.trained[:-1]),
        "trains on rows 0 to 7; its signal covers 2 to 7": other(seq, trained=wider),
        "sequence 99 has no stored signal": other(seq, index=99),
    }
    for text, asked in cases.items():
        with pytest.raises(LimbeckError) as caught:
            stored.get(asked)
        assert caught.value.reason is Reason.SIGNAL_INVALID
        assert text in str(caught.value)
        assert "rows.jsonl:4" in str(caught.value)


def test_a_signal_that_is_not_its_sequences_is_refused(tmp_path: Path) -> None:
    with SignalWriter(tmp_path, header()) as writer:
        writer.add(sequence(0), signal(sequence(0)))
        for index, wrong, text in (
            (1, signal(sequence(2)), "needs a signal of rows 2 to 5; the teacher's covers 2 to 6"),
            (0, signal(sequence(0)), "has a signal already"),
            (2, Signal(2, 5), "cannot be stored: the signal has no ids"),
        ):
            with pytest.raises(LimbeckError) as caught:
                writer.add(sequence(index), wrong)
            assert caught.value.reason is Reason.SIGNAL_INVALID
            assert text in str(caught.value)
    assert SignalStore(tmp_path).indexes == {0}


def test_a_folder_of_other_signals_is_refused_with_each_difference(copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(LimbeckError) as caught:
        SignalWriter(copy, header(weights_digest="cc", temperatures=(1.0,)))
    assert caught.value.reason is Reason.RESUME_REFUSED
    assert "weights_digest is 'bb', here it is 'cc'" in str(caught.value)
    assert "temperatures is (1.0, 2.0), here it is (1.0,)" in str(caught.value)
    assert contents(copy) == before


# -------------------------------------------------------------------------------------------------- killed, full

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import fill
import limbeck.files as files

def armed(function, countdown):
    def call(*args, **kwargs):
        countdown[0] -= 1
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        countdown[0] -= 1
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

def torn(self, value, sync=True, whole=files.AppendLog.append):
    # half of the line reaches the disk, then the rest
    import json
    countdown[0] -= 1
    if countdown[0] == 0:
        os.write(self._file.fileno(), json.dumps(value).encode()[:40])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, value, sync=sync)

target, point = Path(sys.argv[2]), 0
while True:
    point += 1
    child = os.fork()
    if child == 0:
        countdown = [point]
        os.fsync = armed(os.fsync, countdown)
        Path.replace = armed(Path.replace, countdown)
        files.AppendLog.append = torn
        fill(target / str(point), 6, each=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(0 if os.WEXITSTATUS(status) == 0 else 3)
"""


def test_a_writer_killed_anywhere_leaves_whole_shards_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)], check=False)
    assert child.returncode == 0
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 20  # kill points, the last one beyond the end
    expected = contents(folders[-1])
    for folder in folders[:-1]:
        if (folder / "header.json").exists():
            stored = SignalStore(folder)
            assert stored.verify() == []
            assert len(stored.indexes) % 2 == 0
            for index in stored.indexes:
                assert stored.get(sequence(index)).n == sequence(index).n
        written = {path.name for path in shards(folder)}
        fill(folder, 6, each=2)
        assert written <= {path.name for path in shards(folder)}  # nothing whole is captured again
        assert contents(folder) == expected, folder.name
        check_all(folder, 6)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_is_told_and_what_was_added_is_kept(tmp_path: Path, filled: Path) -> None:
    first = shards(filled)[0].name
    with SignalWriter(tmp_path, header()) as writer:
        for index in range(4):
            writer.add(sequence(index), signal(sequence(index)))
        (tmp_path / f".{first}.partial").symlink_to("/dev/full")
        with pytest.raises(LimbeckError) as caught:
            writer.commit()
        assert caught.value.reason is Reason.DISK_FULL
        assert "bytes were to be written" in str(caught.value)
        assert shards(tmp_path) == []
    check_all(tmp_path, 4)  # the disk had room again when the writer was closed


def test_an_error_while_labelling_keeps_what_was_captured(tmp_path: Path) -> None:
    def label() -> None:
        with SignalWriter(tmp_path, header()) as writer:
            writer.add(sequence(0), signal(sequence(0)))
            raise RuntimeError("the teacher died")

    with pytest.raises(RuntimeError, match="the teacher died"):
        label()
    assert SignalStore(tmp_path).indexes == {0}


# ------------------------------------------------------------------------------------------------------- damaged


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def hole(path: Path, draw: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = draw.randrange(len(raw) - 64)
    while not any(raw[at : at + 64]):  # zeros over zeros are no damage
        at = draw.randrange(len(raw) - 64)
    raw[at : at + 64] = bytes(64)
    path.write_bytes(raw)


def flip(path: Path, draw: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)


def lose(path: Path, draw: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("harm", [cut, hole, flip, lose])
def test_a_damaged_shard_is_found_told_and_only_its_rows_are_captured_again(
    filled: Path, copy: Path, harm: Any, seed: int
) -> None:
    draw = random.Random(seed)
    number = draw.randrange(4)
    broken = shards(copy)[number]
    harm(broken, draw)
    stored = SignalStore(copy)
    problems = stored.verify()
    assert [problem.file for problem in problems] == [str(broken)]
    assert f"sequences {4 * number}–{4 * number + 3}" in str(problems[0])
    assert "label again" in str(problems[0])
    with pytest.raises(LimbeckError) as caught:
        stored.get(sequence(4 * number + 1))
    assert caught.value.reason is Reason.STORE_DAMAGED
    assert caught.value.problems[0].file == str(broken)
    untouched = (4 * number + 4) % 16
    assert stored.get(sequence(untouched)).n == sequence(untouched).n

    others = {path.name: path.stat() for path in shards(copy) if path != broken}
    with SignalWriter(copy, header()) as writer:
        assert len(writer.repaired) == 1
        assert broken.name in writer.repaired[0]
        missing = set(range(18)) - writer.done
        assert missing == set(range(4 * number, 4 * number + 4))
        for index in missing:
            writer.add(sequence(index), signal(sequence(index)))
    check_all(copy, 18)
    assert all((copy / name).stat().st_mtime_ns == stat.st_mtime_ns for name, stat in others.items())
    assert [path.read_bytes() for path in shards(copy)] == [path.read_bytes() for path in shards(filled)]
    assert [path.name for path in shards(copy)] == [path.name for path in shards(filled)]
    assert (copy / "damaged" / broken.name).exists() == (harm is not lose)
    assert fill(copy, 18) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_journal_is_told_and_made_anew_without_capturing_anything_again(copy: Path, seed: int) -> None:
    path = copy / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    broken = random.Random(seed).randrange(len(lines) - 1)
    lines[broken] = [bytes(len(lines[broken])), b'{"shart": "x"}\n', b"[1, 2]\n"][seed % 3]
    path.write_bytes(b"".join(lines))
    with pytest.raises(LimbeckError) as caught:
        SignalStore(copy)
    assert caught.value.reason is Reason.STORE_DAMAGED
    assert caught.value.problems[0].file == str(path)
    with SignalWriter(copy, header()) as writer:
        assert writer.done == set(range(18))
        assert "made anew from the shards" in writer.repaired[0]
    check_all(copy, 18)


def test_a_journal_that_names_other_sequences_than_its_shard_is_told(copy: Path) -> None:
    path = copy / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"[[4, 7]]", b"[[4, 9]]"))
    stored = SignalStore(copy)
    assert "names other sequences" in str(stored.verify()[0])
    with SignalWriter(copy, header()) as writer:
        assert writer.done.isdisjoint({4, 5, 6, 7})


def test_a_torn_journal_line_loses_no_shard(copy: Path) -> None:
    path = copy / "journal.jsonl"
    before = contents(copy)
    os.truncate(path, path.stat().st_size - 30)
    assert SignalStore(copy).indexes == frozenset(range(16))
    with SignalWriter(copy, header()) as writer:
        assert writer.done == set(range(18))
        assert "torn by a crash" in writer.repaired[0]
    assert contents(copy) == before


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"codec": "limbeck.topk", "version": 2}'])
def test_a_missing_or_unreadable_header_is_told(copy: Path, text: str | None) -> None:
    path = copy / "header.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(LimbeckError) as caught:
        SignalStore(copy)
    assert caught.value.reason is (Reason.SIGNAL_INVALID if text and "codec" in text else Reason.STORE_DAMAGED)
    assert caught.value.problems


def test_signals_need_no_torch() -> None:
    code = "import sys, limbeck.signals; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_partial_store_takes_the_first_rows_alone_or_none(tmp_path: Path) -> None:
    """Of the second sequence only the first row was said, of the third nothing."""
    partial = header(partial=True)
    sequences = [sequence(index) for index in range(3)]
    counts = [sequences[0].n, 1, 0]
    with SignalWriter(tmp_path, partial) as writer:
        for seq, n in zip(sequences, counts, strict=True):
            whole = signal(seq)
            assert whole.top_k is not None
            assert whole.target is not None
            writer.add(seq, replace(whole, n=n, top_k=whole.top_k.take(slice(n)), target=whole.target[:n]))
    store = SignalStore(tmp_path)
    assert store.header == partial
    for seq, n in zip(sequences, counts, strict=True):
        found, whole = store.get(seq), signal(seq)
        assert found.partial
        assert (found.first_row, found.n) == (seq.first_row, n)
        assert found.top_k is not None
        assert whole.top_k is not None
        np.testing.assert_array_equal(found.top_k.ids, whole.top_k.ids[:n])
        np.testing.assert_array_equal(found.top_k.u, whole.top_k.u[:n])
        assert len(found.target) == n  # type: ignore[arg-type]


def test_a_store_that_is_not_partial_takes_no_part(tmp_path: Path) -> None:
    seq = sequence(0)
    whole = signal(seq)
    assert whole.top_k is not None
    part = replace(whole, n=1, top_k=whole.top_k.take(slice(1)), target=whole.target[:1])  # type: ignore[index]
    with SignalWriter(tmp_path, header()) as writer, pytest.raises(LimbeckError, match="needs a signal of rows"):
        writer.add(seq, part)
    assert "partial" not in header().to_json()
    assert SignalHeader.from_json(header().to_json()) == header()
