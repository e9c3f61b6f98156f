"""Batches by token budget, and whose turn it is."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.service import mixer as mixer_module
from limbeck.service.mixer import Entry, Mixer


def entry(client="a", item_id=0, tokens=10, key=b"k", **more) -> Entry:
    return Entry(client=client, key=key, item_id=item_id, tokens=tokens, size=4 * tokens, **more)


def entries(client: str, count: int, tokens: int = 10, **more) -> list[Entry]:
    return [entry(client, i, tokens, **more) for i in range(count)]


def drained(mixer: Mixer) -> list[list[Entry]]:
    batches = []
    while batch := mixer.next():
        batches.append(batch)
    assert len(mixer) == 0
    return batches


def test_rows_times_the_longest_stays_within_the_budget() -> None:
    mixer: Mixer[Entry] = Mixer(100)
    mixer.add([entry(item_id=i, tokens=tokens) for i, tokens in enumerate([50, 10, 10, 40, 10, 30, 50])])
    batches = drained(mixer)
    assert sorted(e.item_id for batch in batches for e in batch) == list(range(7))
    assert all(len(batch) * max(e.tokens for e in batch) <= 100 for batch in batches)
    assert len(batches) == 3  # 50 50, 10 10 10 30 would be 120: 10 10 10, 40 30


def test_an_item_above_the_budget_goes_by_itself() -> None:
    mixer: Mixer[Entry] = Mixer(100)
    mixer.add([entry(item_id=0, tokens=500), entry(item_id=1)])
    assert [len(batch) for batch in drained(mixer)] == [1, 1]


def test_items_of_about_the_same_length_share_a_batch() -> None:
    mixer: Mixer[Entry] = Mixer(400)
    lengths = [100, 10] * 8
    mixer.add([entry(item_id=i, tokens=tokens) for i, tokens in enumerate(lengths)])
    padded = sum(len(batch) * max(e.tokens for e in batch) for batch in drained(mixer))
    assert padded == sum(lengths)


def test_only_items_of_equal_wants_share_a_batch() -> None:
    mixer: Mixer[Entry] = Mixer(1000)
    mixer.add([entry(item_id=i, key=b"xy"[i % 2 : i % 2 + 1]) for i in range(6)])
    assert [[e.item_id for e in batch] for batch in drained(mixer)] == [[0, 2, 4], [1, 3, 5]]


def test_clients_share_a_batch_also_where_their_names_are_the_same() -> None:
    mixer: Mixer[Entry] = Mixer(1000)
    for client in "abc":
        mixer.add(entries(client, 2))
    (batch,) = drained(mixer)
    assert Counter(e.client for e in batch) == {"a": 2, "b": 2, "c": 2}


def test_a_name_that_decides_the_draws_is_once_in_a_batch() -> None:
    mixer: Mixer[Entry] = Mixer(1000)
    for client in "ab":
        mixer.add(entries(client, 3, named=True))
    batches = drained(mixer)
    assert all(len({e.item_id for e in batch}) == len(batch) for batch in batches)
    assert len(batches) == 2


def test_a_group_is_asked_as_it_is_and_with_nobody_else() -> None:
    mixer: Mixer[Entry] = Mixer(50)
    mixer.add(entries("a", 2))
    mixer.add([entry("a", 9, 100), entry("a", 8, 3)], alone=True)
    mixer.add(entries("b", 1))
    batches = [[(e.client, e.item_id) for e in batch] for batch in drained(mixer)]
    assert [("a", 9), ("a", 8)] in batches
    assert len(batches) == 2


def test_a_group_keeps_what_is_dropped_until_nobody_waits_for_any_of_it() -> None:
    mixer: Mixer[Entry] = Mixer(50)
    first, second = entries("a", 2)
    mixer.add([first, second], alone=True)
    mixer.drop(first)
    assert len(mixer) == 2
    mixer.drop(second)
    assert len(mixer) == 0
    assert mixer.next() == []


def test_what_is_dropped_is_not_asked_and_leaves_nothing_behind() -> None:
    mixer: Mixer[Entry] = Mixer(50)
    mine, other = entry("a"), entry("b")
    mixer.add([mine])
    mixer.add([other])
    mixer.drop(mine)
    assert drained(mixer) == [[other]]
    assert mixer._clients == {}


def test_a_greedy_client_never_starves_another() -> None:
    mixer: Mixer[Entry] = Mixer(40)
    mixer.add(entries("greedy", 1000, key=b"x"))
    mixer.next()
    mixer.add(entries("small", 2, key=b"y"))
    told = [batch[0].client for batch in (mixer.next(), mixer.next())]
    assert "small" in told


def test_two_greedy_clients_are_served_alike_whatever_their_items_length() -> None:
    mixer: Mixer[Entry] = Mixer(100)
    mixer.add(entries("long", 200, 50, key=b"x"))
    mixer.add(entries("short", 2000, 5, key=b"y"))
    served: Counter[str] = Counter()
    while len(served) < 2 or sum(served.values()) < 5000:
        for e in mixer.next():
            served[e.client] += e.tokens
    assert abs(served["long"] - served["short"]) <= 100


def test_a_full_batch_is_shared_in_equal_parts() -> None:
    mixer: Mixer[Entry] = Mixer(160)
    mixer.add(entries("many", 500))
    mixer.add(entries("some", 8))
    counts = Counter(e.client for e in mixer.next())
    assert counts == {"many": 8, "some": 8}


def test_a_pause_earns_no_credit() -> None:
    mixer: Mixer[Entry] = Mixer(10)
    mixer.add(entries("steady", 100))
    for _ in range(50):
        mixer.next()
    mixer.add(entries("late", 50))
    first = [mixer.next()[0].client for _ in range(20)]
    assert Counter(first) == {"late": 10, "steady": 10}


def test_new_names_do_not_starve_who_waits() -> None:
    mixer: Mixer[Entry] = Mixer(10)
    mixer.add(entries("steady", 20))
    seen = []
    for number in range(20):
        mixer.add([entry(f"new {number}")])
        seen.append(mixer.next()[0].client)
    assert seen.count("steady") >= 5  # there are ever more of them that wait


def test_who_took_a_lot_and_comes_back_at_once_waits_for_the_others() -> None:
    mixer: Mixer[Entry] = Mixer(10)
    mixer.add(entries("steady", 100))
    mixer.add([entry("burst", tokens=300)])
    seen = []
    for _ in range(40):
        batch = mixer.next()
        seen.append(batch[0].client)
        if batch[0].client == "burst":
            mixer.add([entry("burst", tokens=300)])
    assert seen.count("burst") == 2  # its 300 tokens are 30 of the other's items


def test_nothing_is_kept_of_clients_that_have_gone() -> None:
    mixer: Mixer[Entry] = Mixer(100)
    for number in range(1000):
        mixer.add(entries(f"client {number}", 1 + number % 3))
        mixer.next()
    drained(mixer)
    assert (mixer._clients, mixer._ahead) == ({}, {})


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer_module, "MOST_BYTES", 100)
    mixer: Mixer[Entry] = Mixer(10**6)
    mixer.add(entries("a", 7))
    assert [len(batch) for batch in drained(mixer)] == [2, 2, 2, 1]


@given(st.integers(0, 10**6))
def test_whatever_comes_each_entry_goes_out_once_or_was_dropped(seed: int) -> None:
    rng = random.Random(seed)
    mixer: Mixer[Entry] = Mixer(60)
    waiting: set[Entry] = set()
    out: list[Entry] = []
    dropped: set[Entry] = set()
    for number in range(40):
        deed = rng.random()
        if deed < 0.5:
            named, key = rng.random() < 0.5, rng.choice([b"x", b"y"])
            more = [
                entry(rng.choice("abc"), number * 10 + i, rng.randint(1, 80), key, named=named)
                for i in range(rng.randint(1, 6))
            ]
            for client in "abc":
                mixer.add([e for e in more if e.client == client], alone=rng.random() < 0.3)
            waiting |= set(more)
        elif deed < 0.7 and waiting:
            gone = rng.choice(sorted(waiting, key=lambda e: e.item_id))
            mixer.drop(gone)
            waiting.discard(gone)
            dropped.add(gone)
        else:
            batch = mixer.next()
            out += batch
            waiting -= set(batch)
    for batch in drained(mixer):
        out += batch
    assert len(out) == len(set(out))
    assert waiting <= set(out)
    assert all(e.group is not None for e in dropped & set(out))
