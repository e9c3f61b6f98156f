"""rows/said.jsonl: what was said comes back as it was, across kills, torn lines and repeated positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Said
from limbeck.runs.said import SaidLog, read_said
from limbeck.signals import TopK


def said(n: int, *, k: int = 3, vocab: int = 90_000, seed: int = 0, target: bool = True) -> Said:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4 * k)) * 3
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[:, :k]
    ids = np.stack([rng.choice(vocab, k, replace=False) for _ in range(n)]) if n else np.zeros((0, k), int)
    written = rng.integers(vocab, size=n).astype(np.int32)
    return Said(written, TopK.without_tail(ids, logprobs), logprobs[:, 0].astype(np.float32) if target else None)


def same(one: Said, other: Said) -> bool:
    tops = all(np.array_equal(getattr(one.top_k, name), getattr(other.top_k, name)) for name in ("ids", "u", "tails"))
    targets = (one.target is None) == (other.target is None)
    return tops and targets and np.array_equal(one.ids, other.ids) and bool(np.all(one.target == other.target))


def test_what_was_said_comes_back_bit_by_bit(tmp_path: Path) -> None:
    lines = {0: said(5), 7: said(2, k=1, seed=1, target=False), 3: said(4, vocab=200, seed=2)}
    with SaidLog(tmp_path / "said.jsonl") as log:
        for position, what in lines.items():
            log.append(position, what)
    found = read_said(tmp_path / "said.jsonl")
    assert sorted(found) == [0, 3, 7]
    assert all(same(found[position], what) for position, what in lines.items())


def test_the_last_line_of_a_position_counts_and_a_torn_one_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    with SaidLog(path) as log:
        log.append(0, said(5))
        log.append(1, said(3, seed=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])  # a kill in the middle of a line
    assert list(read_said(path)) == [0]
    with SaidLog(path) as log:
        assert log.repaired is not None
        log.append(1, said(3, seed=2))
        log.append(0, said(6, seed=3))
    found = read_said(path)
    assert same(found[1], said(3, seed=2))
    assert same(found[0], said(6, seed=3))


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert dict(read_said(tmp_path / "said.jsonl")) == {}


def test_a_line_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    with SaidLog(path) as log:
        log.append(4, said(5))
    path.write_text(path.read_text().replace('"k": 3', '"k": 2'))
    with pytest.raises(LimbeckError, match="position 4") as caught:
        read_said(path)[4]
    assert caught.value.reason is Reason.LOG_DAMAGED
