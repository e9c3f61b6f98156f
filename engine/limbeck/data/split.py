"""Which rows are held out: by content, never the same prompt on both sides."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from limbeck.data.rows import Row

_MOST_SUMS = 20_000_000


def split_key(row: Row) -> str:
    """What must not be on both sides: the normalised prompt; of a conversation its first user turn.

    Unicode form, case and white space make no difference. A text row is its own key.
    """
    prompt = row.value.get("text") or row.value.get("messages") or row.value["prompt"]
    if not isinstance(prompt, str):
        prompt = next(message["content"] for message in prompt if message["role"] == "user")
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def held_out(keys: Sequence[str], holdout: float | int, seed: int) -> list[bool]:
    """For each row, by the key of each, whether it is held out.

    `holdout` below 1 is a fraction of the rows, else a number of rows; whole groups of one key are taken, in an order
    that depends on the seed and their content only, so that the number is met as closely as groups allow. At least one
    group is left to train on.
    """
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    wanted = round(len(keys) * holdout) if holdout < 1 else int(holdout)
    order = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    chosen = _closest([sizes[key] for key in order], min(wanted, len(keys)))
    if len(chosen) == len(order) and order:
        chosen.discard(len(order) - 1)
    taken = {order[index] for index in chosen}
    return [key in taken for key in keys]


def _closest(sizes: Sequence[int], wanted: int) -> set[int]:
    """Indexes of the sizes whose sum is closest to `wanted`; the first ones where there is a choice."""
    greedy: set[int] = set()
    total = 0
    for index, size in enumerate(sizes):
        if total + size <= wanted:
            greedy.add(index)
            total += size
    if total == wanted or wanted * len(sizes) > _MOST_SUMS:
        return greedy
    # Every sum that can be reached, up to the first beyond `wanted`, with the last index it took.
    limit = wanted + min(wanted - total, min(sizes))
    reached: dict[int, tuple[int, int] | None] = {0: None}
    for index, size in enumerate(sizes):
        for before in list(reached):
            if before + size <= limit and before + size not in reached:
                reached[before + size] = (before, index)
    total = min(reached, key=lambda value: (abs(value - wanted), value))
    chosen: set[int] = set()
    while (step := reached[total]) is not None:
        total, index = step
        chosen.add(index)
    return chosen
