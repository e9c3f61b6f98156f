"""Evaluation gives the figures that plain logits give, weighted by tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.testing.tiny import tiny_model
from limbeck.training import evaluate, teacher_figures


def by_hand(model: Any, world: Any, kit: Any) -> dict[str, float]:
    entropy = kl = top1 = 0.0
    tokens = 0
    for sequence in world.sequences:
        ids = torch.from_numpy(sequence.ids.astype("int64"))
        rows = torch.from_numpy(sequence.kept)
        with torch.no_grad():
            q = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)[rows]
        signal = world.store.get(sequence)
        there, on_support, tail = signal.top_k.at(1.0)
        place = rows - signal.first_row
        there, p = torch.from_numpy(there).long()[place], torch.from_numpy(on_support)[place]
        t = torch.from_numpy(tail)[place]
        q_s = q.gather(1, there)
        u = torch.log1p(-q_s.exp().sum(1))
        kl += float((p.exp() * (p - q_s)).sum() + (t.exp() * (t - u)).sum())
        entropy -= float(q.gather(1, ids[rows + 1][:, None]).sum())
        top1 += float((q.argmax(1) == there[:, 0]).sum())
        tokens += len(rows)
    return {"cross_entropy": entropy / tokens, "forward_kl": kl / tokens, "top1_agreement": top1 / tokens}


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_figures_are_those_of_plain_logits_whatever_the_batches(world: Any, kit: Any, batch_tokens: int) -> None:
    model = tiny_model("gemma2", kit.VOCAB, seed=4, scale=2.0)
    expected = by_hand(model, world, kit)
    told: list[int] = []
    figures = evaluate(model, world.sequences, world.store, batch_tokens=batch_tokens, advance=told.append)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert figures["perplexity"] == pytest.approx(math.exp(expected["cross_entropy"]), rel=1e-4)
    assert figures["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert figures["bytes"] == 4 * figures["parameters"]
    assert figures["tokens_per_second"] > 0
    assert sum(told) == sum(len(sequence.kept) for sequence in world.sequences)


def test_the_teacher_is_no_distance_from_itself(world: Any, kit: Any) -> None:
    figures = evaluate(world.teacher, world.sequences, world.store)
    assert figures["forward_kl"] == pytest.approx(0.0, abs=1e-6)
    assert figures["top1_agreement"] == pytest.approx(1.0, abs=0.02)  # near ties may be rounded to one code
    said = teacher_figures(world.sequences, world.store)
    assert said["cross_entropy"] == pytest.approx(figures["cross_entropy"], rel=1e-5)
    assert said["perplexity"] == pytest.approx(figures["perplexity"], rel=1e-5)
    assert (said["forward_kl"], said["top1_agreement"]) == (0.0, 1.0)


def test_what_the_teacher_did_not_speak_of_is_left_out_and_weights_make_no_difference(
    world: Any, kit: Any, tmp_path: Any
) -> None:
    sequences = kit.weighed(world.sequences)
    store = kit.write_store(tmp_path, sequences, world.teacher, partial=True)
    model = tiny_model("llama", kit.VOCAB, seed=4, scale=2.0)
    kl = compared = 0.0
    for sequence in sequences:
        signal = store.get(sequence)
        rows = [row for row in sequence.kept.tolist() if row < signal.first_row + signal.n]
        ids = torch.from_numpy(sequence.ids.astype("int64"))
        with torch.no_grad():
            q = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)[rows]
        support, p, tail = (torch.from_numpy(x[[row - signal.first_row for row in rows]]) for x in signal.top_k.at(1.0))
        q = q.gather(1, support.long())
        rest = tail.exp() * (tail - torch.log1p(-q.exp().sum(1)))
        kl += float((p.exp() * (p - q)).sum() + rest.sum())
        compared += len(rows)
    found = evaluate(model, sequences, store)
    assert found["forward_kl"] == pytest.approx(kl / compared, rel=1e-4)
    plain = [
        replace(s, trained=s.trained & (s.weights > 0), weights=None) if s.weights is not None else s for s in sequences
    ]
    assert found["perplexity"] == pytest.approx(evaluate(model, plain, None)["perplexity"], rel=1e-6)
    assert teacher_figures(sequences, store)["perplexity"] is None  # of all tokens, or unknown


def test_without_signals_only_the_text_is_measured(world: Any, kit: Any) -> None:
    figures = evaluate(tiny_model("gpt2", kit.VOCAB), world.sequences, None)
    assert figures["cross_entropy"] == pytest.approx(math.log(kit.VOCAB), rel=0.1)
    assert figures["forward_kl"] is None
    assert figures["top1_agreement"] is None


def test_a_model_in_training_mode_is_measured_without_dropout_and_stays_so(world: Any, kit: Any) -> None:
    model = kit.tiny_student().model.train()
    first, second = (evaluate(model, world.sequences, world.store) for _ in range(2))
    assert first["forward_kl"] == second["forward_kl"]
    assert model.training


def test_a_stop_ends_it_between_batches(world: Any, kit: Any) -> None:
    told: list[int] = []
    evaluate(world.teacher, world.sequences, None, batch_tokens=1, advance=told.append, stop=lambda: "SIGTERM")
    assert len(told) == 1


def test_no_rows_give_no_figures(world: Any, kit: Any) -> None:
    figures = evaluate(world.teacher, [], None)
    assert figures["perplexity"] is None
    assert figures["tokens_per_second"] is None
    assert teacher_figures([], world.store)["perplexity"] is None
