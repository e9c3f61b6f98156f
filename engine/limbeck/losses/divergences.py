"""Divergences between the teacher's p and the student's q, per token."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from limbeck.interfaces import Needs, Support
from limbeck.losses.numerics import logaddexp, outcomes, relative_entropy


class ForwardKL:
    """KL(p ‖ q) = Σ p (log p − log q) (Hinton et al., 2015)."""

    needs = Needs("top_k")

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
        return relative_entropy(outcomes(teacher), outcomes(student))


class ReverseKL:
    """KL(q ‖ p) = Σ q (log q − log p) (Gu et al., 2024). +inf where q > 0 and p = 0."""

    needs = Needs("top_k")

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
        return relative_entropy(outcomes(student), outcomes(teacher))


class JensenShannon:
    """w·KL(p ‖ m) + (1−w)·KL(q ‖ m), m = w·p + (1−w)·q, w = `teacher_weight` (Agarwal et al., 2024)."""

    needs = Needs("top_k")

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor:
        weight = knobs["teacher_weight"]
        log_p, log_q = outcomes(teacher), outcomes(student)
        log_m = logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))
        return weight * relative_entropy(log_p, log_m) + (1 - weight) * relative_entropy(log_q, log_m)
