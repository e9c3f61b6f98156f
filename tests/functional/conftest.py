"""Losses by plain formulas over full logits in float64: written on their own, from the definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.functional import Term, Values
from limbeck.functional.bare import knobs_of
from limbeck.interfaces import LossContext
from limbeck.losses import PLUGINS

Made = tuple[Term, Values]


@pytest.fixture(scope="session")
def make() -> Callable[..., Made]:
    """make("jsd", tail="drop", name="a") → the term and its knobs."""
    plugins = {plugin.name: plugin for plugin in PLUGINS}

    def build(plugin: str, *, sizes: tuple[int, int, int] = (6, 10, 17), **options: Any) -> Made:
        config = plugins[plugin].config.model_validate(options)
        return Term.of(plugins[plugin], config, LossContext(*sizes)), Values.of(knobs_of(config))

    return build


@pytest.fixture(scope="session")
def formula() -> Callable[..., Tensor]:
    """formula(name, student_logits [n, v], teacher_logits, ids [n, k] or None, options, labels) → loss per token."""

    def per_token(
        name: str, zs: Tensor, zt: Tensor | None, ids: Tensor | None, options: Mapping[str, Any], labels: Tensor
    ) -> Tensor:
        if name in ("cross_entropy", "sequence_kd"):
            return -torch.softmax(zs, 1).gather(1, labels[:, None])[:, 0].log()
        assert zt is not None
        temperature = options.get("temperature", 1.0)
        p, q = torch.softmax(zt / temperature, 1), torch.softmax(zs / temperature, 1)
        if ids is not None:
            keep = torch.zeros_like(p).scatter(1, ids, 1.0)
            rest_p, rest_q = (p * (1 - keep)).sum(1, keepdim=True), (q * (1 - keep)).sum(1, keepdim=True)
            p, q = p.gather(1, ids), q.gather(1, ids)
            tail = options.get("tail", "bucket")
            if tail == "bucket":
                p, q = torch.cat([p, rest_p], 1), torch.cat([q, rest_q], 1)
            elif tail == "renormalise":
                p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        if name == "forward_kl":
            value = (p * (p / q).log()).sum(1)
        elif name == "reverse_kl":
            value = (q * (q / p).log()).sum(1)
        else:
            assert name == "jsd"
            w = options.get("teacher_weight", 0.5)
            m = w * p + (1 - w) * q
            value = w * (p * (p / m).log()).sum(1) + (1 - w) * (q * (q / m).log()).sum(1)
        return value * temperature**2 if options.get("temperature_squared", True) else value

    return per_token
