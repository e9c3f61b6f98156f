"""Batches of sequences by a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence


def by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths` in batches whose padded size, rows × longest, stays within `budget`.

    Longest first, so that what needs the most memory is tried first; ties by position. A sequence above the budget is
    a batch of its own. Depends on `lengths` alone.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
