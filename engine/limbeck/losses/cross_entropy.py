"""Cross-entropy with the label, the text's own next token."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from limbeck.interfaces import Needs, Support


class CrossEntropy:
    """−log q(label), at temperature 1. `sequence_kd` is the same on a text that a teacher wrote."""

    def __init__(self, needs: Needs) -> None:
        self.needs = needs

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
        return -student.on_support[:, 0]
