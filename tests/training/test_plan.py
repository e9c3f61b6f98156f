"""Data order is a function of (data_seed, epoch)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from limbeck.training.plan import Plan


def epoch(plan: Plan, number: int) -> list[list[int]]:
    return [plan.rows(number, micro) for micro in range(len(plan))]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(kit: Any) -> None:
    plan = Plan.of(kit.make_sequences(11), 4, seed=3)
    orders = [flat(epoch(plan, number)) for number in range(4)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert [len(batch) for batch in epoch(plan, 0)] == [4, 4, 3]


def test_the_order_is_pinned() -> None:
    plan = Plan([(i,) for i in range(8)], 8, seed=42)
    # Written down once: another order would make every resume after an upgrade another training.
    assert plan.rows(0, 0) == [4, 1, 3, 6, 0, 7, 2, 5]


def test_no_global_generator_is_read_or_moved(kit: Any) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = flat(epoch(Plan.of(kit.make_sequences(20), 4, seed=3), 1))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert flat(epoch(Plan.of(kit.make_sequences(20), 4, seed=3), 1)) == first


def test_processes_share_each_micro_batch_and_may_get_nothing_of_the_last(kit: Any) -> None:
    sequences = kit.make_sequences(9)
    alone = Plan.of(sequences, 4, seed=3)
    ranks = [Plan.of(sequences, 2, seed=3, world=2, rank=rank) for rank in (0, 1)]
    assert [len(plan) for plan in ranks] == [len(alone)] * 2
    for number in range(len(alone)):
        assert ranks[0].rows(1, number) + ranks[1].rows(1, number) == alone.rows(1, number)
    assert ranks[1].rows(1, 2) == []


def test_the_rows_of_a_preference_pair_stay_together(kit: Any) -> None:
    sequences = kit.make_sequences(10, pairs=True)
    for size in (1, 2, 4, 5):
        plan = Plan.of(sequences, size, seed=3, pairs=True)
        for batch in epoch(plan, 0):
            assert all(batch[i] // 2 == batch[i + 1] // 2 for i in range(0, len(batch), 2))
            assert len(batch) <= max(size, 2)
        assert sorted(flat(epoch(plan, 0))) == list(range(10))
