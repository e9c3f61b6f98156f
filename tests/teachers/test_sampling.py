"""Draws by given uniform numbers."""

import numpy as np
import pytest
import torch

from limbeck.interfaces import Sampling
from limbeck.teachers import sampling as module
from limbeck.teachers.batching import by_budget
from limbeck.teachers.draws import tally, uniforms
from limbeck.teachers.sampling import draw, next_ids


def test_a_draw_inverts_the_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.0, 0.6, 0.3]]))
    at = torch.tensor([[0.0, 0.0999, 0.1001, 0.6999, 0.7001, 1 - 2**-53]], dtype=torch.float64)
    assert draw(logits, at).tolist() == [[0, 0, 2, 2, 3, 3]]


def test_what_has_no_mass_is_never_drawn_even_at_the_edges():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    assert draw(logits, torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)).tolist() == [[1, 1]]


@pytest.mark.parametrize("sizes", [(2, 9), (64,), (1, 2, 3, 20)])
def test_a_nucleus_is_the_same_wherever_it_is_looked_for_first(sizes, monkeypatch):
    monkeypatch.setattr(module, "NUCLEUS", sizes)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 64, generator=generator)
    probabilities = torch.softmax(logits.double(), -1)
    for number in np.linspace(0, 0.999, 23):
        drawn = next_ids(
            logits.clone(), Sampling(temperature=1.0, top_p=0.6), torch.full((5,), number, dtype=torch.float64)
        )
        for row, token in enumerate(drawn.tolist()):
            falling = probabilities[row].sort(descending=True)
            size = int((falling.values.cumsum(0) < 0.6).sum()) + 1
            mass = falling.values[:size].cumsum(0)
            expected = falling.indices[int((mass <= number * mass[-1]).sum())]
            assert token == expected


def test_a_nucleus_is_taken_within_the_top_k():
    logits = torch.log(torch.tensor([[0.3, 0.25, 0.25, 0.2]]))
    settings = Sampling(temperature=1.0, top_k=2, top_p=0.5)  # of the two, the first has 0.3 / 0.55
    assert next_ids(logits, settings, torch.tensor([0.999], dtype=torch.float64)).tolist() == [0]


def test_temperature_is_applied_first():
    logits = torch.tensor([[2.0, 0.0]])
    share = 1 / (1 + np.exp(-1.0))
    for number, expected in ((share - 0.001, 0), (share + 0.001, 1)):
        at = torch.tensor([number], dtype=torch.float64)
        assert next_ids(logits.clone(), Sampling(temperature=2.0), at).tolist() == [expected]


def test_numbers_belong_to_seed_and_item_and_grow_at_the_end():
    assert (uniforms(1, 2, (5, 3)) == uniforms(1, 2, (9, 3))[:5]).all()
    assert (uniforms(1, 2, (5,)) != uniforms(1, 3, (5,))).all()
    assert (uniforms(1, 2, (5,)) != uniforms(2, 1, (5,))).all()
    assert uniforms(-1, 2**63, (2,)).shape == (2,)


def test_a_tally_counts_distinct_ids():
    drawn = np.array([[7, 3, 7, 7], [1, 1, 1, 1]])
    logprobs = np.where(drawn == 7, -0.5, -2.0)
    samples = tally(drawn, logprobs)
    assert samples.ids[:, :2].tolist() == [[3, 7], [1, 0]]
    assert samples.counts.tolist() == [[1, 3, 0, 0], [4, 0, 0, 0]]
    np.testing.assert_allclose(samples.logprobs[0, :2], [-2.0, -0.5])


def test_batches_stay_within_the_budget_longest_first():
    lengths = [3, 50, 7, 7, 2, 9, 120]
    batches = by_budget(lengths, 60)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert batches[0] == [6]  # too long for the budget: alone
    for batch in batches[1:]:
        assert max(lengths[position] for position in batch) * len(batch) <= 60
    assert by_budget([], 60) == []
