"""Preference figures are those of plain logits of model and reference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from limbeck.testing.tiny import tiny_model
from limbeck.training import evaluate, teacher_figures
from limbeck.training.preferences import TIE, pair_figures


def log_prob(model: Any, sequence: Any) -> float:
    """log q of a sequence's trained tokens, from logits."""
    ids = torch.from_numpy(sequence.ids.astype("int64"))
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(1, len(ids)) if sequence.trained[at])


def margins(model: Any, reference: Any, sequences: Any) -> list[float]:
    ratio = {(s.pair, s.chosen): log_prob(model, s) - log_prob(reference, s) for s in sequences}
    return [ratio[pair, True] - ratio[pair, False] for pair in sorted({pair for pair, _ in ratio})]


@pytest.fixture
def pairs(world: Any, kit: Any, tmp_path: Any) -> tuple[Any, Any]:
    """Seven pairs, and what the teacher says of them."""
    sequences = kit.make_sequences(14, seed=5, pairs=True)
    return sequences, kit.write_store(tmp_path / "pairs", sequences, world.teacher)


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_accuracy_and_margin_are_those_of_plain_logits_whatever_the_batches(
    world: Any, kit: Any, pairs: tuple[Any, Any], batch_tokens: int
) -> None:
    model = tiny_model("gemma2", kit.VOCAB, seed=4, scale=2.0)
    expected = margins(model, world.teacher, pairs[0])
    assert 0 < sum(margin > 0 for margin in expected) < len(expected) == 7
    figures = evaluate(model, *pairs, batch_tokens=batch_tokens)
    assert figures["preference_accuracy"] == sum(margin > 0 for margin in expected) / 7
    assert figures["preference_margin"] == pytest.approx(sum(expected) / 7, rel=1e-4)


def test_a_copy_of_the_reference_favours_neither_text(world: Any, pairs: tuple[Any, Any]) -> None:
    figures, said = evaluate(world.teacher, *pairs), teacher_figures(*pairs)
    assert figures["preference_accuracy"] == said["preference_accuracy"] == 0.5
    assert figures["preference_margin"] == pytest.approx(0.0, abs=TIE)
    assert said["preference_margin"] == 0.0


def test_only_whole_pairs_with_a_trained_token_on_both_sides_count(
    world: Any, kit: Any, pairs: tuple[Any, Any]
) -> None:
    model = tiny_model("llama", kit.VOCAB, seed=9, scale=2.0)
    sequences, store = pairs
    expected = margins(model, world.teacher, sequences)
    sequences = [dataclasses.replace(s, trained=s.trained & False) if s.index == 3 else s for s in sequences[:-1]]
    figures = evaluate(model, sequences, store)
    kept = [margin for pair, margin in enumerate(expected) if pair not in (1, 6)]
    assert figures["preference_margin"] == pytest.approx(sum(kept) / 5, rel=1e-4)


def test_rows_without_pairs_and_a_missing_reference_give_no_figure(
    world: Any, kit: Any, pairs: tuple[Any, Any]
) -> None:
    for figures in (evaluate(world.teacher, world.sequences, world.store), evaluate(world.teacher, pairs[0], None)):
        assert figures["preference_accuracy"] is None
        assert figures["preference_margin"] is None


def test_ties_count_half_and_a_nan_is_not_hidden() -> None:
    assert pair_figures([1.0, -2.0, TIE / 2, 3.0]) == {
        "preference_accuracy": 2.5 / 4,
        "preference_margin": pytest.approx(0.5, abs=TIE),
    }
    assert all(math.isnan(value) for value in pair_figures([1.0, math.nan]).values())
    assert pair_figures([1.0, math.inf]) == {"preference_accuracy": 1.0, "preference_margin": math.inf}
