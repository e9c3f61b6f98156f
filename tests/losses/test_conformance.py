"""Every built-in loss passes the suite that third parties' losses pass."""

from __future__ import annotations

from limbeck.losses import PLUGINS
from limbeck.testing.losses import FeatureLossConformance, SequenceLossConformance, TokenLossConformance

BY_NAME = {plugin.name: plugin for plugin in PLUGINS}
TAILS = ({}, {"tail": "renormalise"}, {"tail": "drop"}, {"top_k": 3})


class TestForwardKL(TokenLossConformance):
    plugin = BY_NAME["forward_kl"]
    configs = TAILS


class TestReverseKL(TokenLossConformance):
    plugin = BY_NAME["reverse_kl"]
    configs = TAILS


class TestJsd(TokenLossConformance):
    plugin = BY_NAME["jsd"]
    configs = (*TAILS, {"teacher_weight": 0.1}, {"beta": 0.9})


class TestCrossEntropy(TokenLossConformance):
    plugin = BY_NAME["cross_entropy"]


class TestSequenceKD(TokenLossConformance):
    plugin = BY_NAME["sequence_kd"]


class TestContrastive(SequenceLossConformance):
    plugin = BY_NAME["contrastive"]
    configs = ({}, {"beta": 0.5})


class TestHiddenMse(FeatureLossConformance):
    plugin = BY_NAME["hidden_mse"]
    configs = ({"layers": [[0, 0], [2, 4]]}, {"layers": [[-1, -1]]})


def test_no_built_in_loss_is_left_out() -> None:
    suites = [value for value in globals().values() if isinstance(value, type) and "plugin" in vars(value)]
    assert {suite.plugin.name for suite in suites} == set(BY_NAME)
