"""The file of sequences: what is read is what was written, or an error."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import TokenSequence, read_sequences, write_sequences
from limbeck.errors import LimbeckError, Reason


def sequence(index: int, length: int = 5, **more: Any) -> TokenSequence:
    draw = np.random.default_rng(index)
    ids = draw.integers(0, 2**31 - 1, length, dtype=np.int32)
    offsets = draw.integers(0, 99, (length, 2), dtype=np.int32)
    trained = draw.random(length) < 0.5
    trained[:1] = False
    return TokenSequence(index, ids, trained, offsets, "rows.jsonl", index + 1, **more)


def same(first: Sequence[TokenSequence], second: Sequence[TokenSequence]) -> bool:
    return len(first) == len(second) and all(
        (a.index, a.source, a.line, a.pair, a.chosen) == (b.index, b.source, b.line, b.pair, b.chosen)
        and all(
            np.array_equal(x, y) and x.dtype == y.dtype
            for x, y in ((a.ids, b.ids), (a.trained, b.trained), (a.offsets, b.offsets))
        )
        for a, b in zip(first, second, strict=True)
    )


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 40), max_size=20))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    path = tmp_path_factory.mktemp("store") / "sequences" / "train.arrow"
    written = [sequence(i, n, pair=i // 2, chosen=i % 2 == 0) for i, n in enumerate(lengths)]
    write_sequences(path, written)
    assert same(read_sequences(path), written)


def test_any_part_is_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    written = [sequence(i) for i in range(1000)]
    write_sequences(path, written)
    read = read_sequences(path)
    assert len(read) == 1000
    assert same([read[999], read[-1000], *read[250:270]], [written[999], written[0], *written[250:270]])
    assert same(list(read), written)
    with pytest.raises(IndexError):
        read[1000]


def test_writing_again_replaces_the_whole_file_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    write_sequences(path, [sequence(i) for i in range(300)])
    write_sequences(path, [sequence(7)])
    assert same(read_sequences(path), [sequence(7)])
    assert os.listdir(tmp_path) == ["train.arrow"]


def test_a_flipped_byte_is_damage_or_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    written = [sequence(i, 1 + i % 9) for i in range(600)]
    write_sequences(path, written)
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = 0
    for _ in range(150):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        damaged += refused(path, written)
    assert damaged > 75


def test_a_cut_file_and_a_hole_of_zeros_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    written = [sequence(i, 20) for i in range(600)]
    write_sequences(path, written)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:place])
        assert refused(path, written)
        path.write_bytes(whole[:place] + bytes(min(4096, len(whole) - place)) + whole[place + 4096 :])
        assert refused(path, written)


def refused(path: Path, written: list[TokenSequence]) -> bool:
    """Whether reading it all raises STORE_DAMAGED; if not, it must be what was written."""
    found: list[TokenSequence] = []
    fault: LimbeckError | None = None
    try:
        found = list(read_sequences(path))
    except LimbeckError as error:
        fault = error
    if fault is None:
        assert same(found, written)
        return False
    assert fault.reason is Reason.STORE_DAMAGED
    assert fault.problems[0].file == str(path)
    return True


def test_a_missing_file_and_another_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "other.arrow").write_bytes(b"ARROW1 or so")
    for name in ("gone.arrow", "other.arrow"):
        with pytest.raises(LimbeckError) as caught:
            read_sequences(tmp_path / name)
        assert caught.value.reason is Reason.STORE_DAMAGED
