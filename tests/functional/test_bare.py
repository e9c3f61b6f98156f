"""The entry for loops of one's own."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import LimbeckError, Reason
from limbeck.functional import Answer, Head, SignalBatch, distill_loss, head_loss, make_terms
from limbeck.interfaces import LossContext

CONTEXT = LossContext(6, 10, 17)


def test_terms_and_values_come_from_mappings() -> None:
    terms, values = make_terms(
        [
            {"plugin": "forward_kl", "weight": 0.9, "temperature": 2, "tail": "drop", "top_k": 3},
            {"plugin": "jsd", "name": "second", "beta": 0.2},
        ],
        CONTEXT,
    )
    assert [(term.name, term.tail, term.top_k, term.temperature_squared) for term in terms] == [
        ("forward_kl", "drop", 3, True),
        ("second", "bucket", 64, True),
    ]
    assert (values["forward_kl"].weight, values["forward_kl"].temperature) == (0.9, 2.0)
    assert values["second"].knobs == {"teacher_weight": 0.2}


def test_every_problem_is_told_at_once() -> None:
    losses = [
        {"plugin": "forward_kl", "temprature": 2.0},
        {"plugin": "reverse_kl", "temperature": {"plugin": "linear", "start": 2.0, "end": 1.0}},
        {"plugin": "cross_entropy", "weight": -1.0},
        {"plugin": "jsd", "name": "a"},
        {"plugin": "jsd", "name": "a"},
    ]
    with pytest.raises(LimbeckError) as caught:
        make_terms(losses, CONTEXT)
    assert caught.value.reason == Reason.RECIPE_INVALID
    fields = [problem.field for problem in caught.value.problems]
    assert fields[:2] == ["losses[0].temprature", "losses[1].temperature"]
    assert fields[2].startswith("losses[2].weight")  # type: ignore[union-attr]
    assert fields[-1] == "losses[4].name"


def test_an_unknown_loss_is_named_with_the_nearest() -> None:
    with pytest.raises(LimbeckError, match="forward_kl") as caught:
        make_terms([{"plugin": "foward_kl"}], CONTEXT)
    assert caught.value.reason == Reason.PLUGIN_UNKNOWN


def test_whole_hidden_states_are_selected_and_the_result_is_checked() -> None:
    torch.manual_seed(0)
    terms, values = make_terms([{"plugin": "reverse_kl"}, {"plugin": "hidden_mse", "layers": [[1, 2]]}], CONTEXT)
    labels = torch.randint(0, 17, (2, 5))
    labels[0, :3] = -100
    hidden, layer, head = torch.randn(2, 5, 6), torch.randn(2, 5, 6), Head(torch.randn(17, 6))
    teacher = torch.randn(6, 17)
    batch = SignalBatch.of_labels(
        labels, answers={"top_k": Answer.of_logits(teacher, 4)}, hidden={2: torch.randn(6, 10)}
    )
    out = distill_loss(hidden, head, batch, terms, values, features={1: layer})
    flat = {1: batch.select(layer)}
    expected = head_loss(batch.select(hidden), head, batch, terms, values, features=flat)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(distill_loss(batch.select(hidden), head, batch, terms, values, features=flat).loss, out.loss)
    hidden[1, 2] = float("nan")
    with pytest.raises(LimbeckError, match=r"losses\.reverse_kl") as caught:
        distill_loss(hidden, head, batch, terms, values, features={1: layer})
    assert caught.value.reason == Reason.LOSS_NOT_FINITE
