"""The figures of the optimizer steps between two logged ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck.functional import HeadOutput, Term

_AVERAGED = ("teacher_mass", "student_mass", "top1_agreement")
_COUNTED = ("tokens", "rows", "pairs", "kept")


class Window:
    """Adds up losses and diagnostics; averages are weighted by tokens (or rows, pairs), not by steps.

    Losses are averaged over tokens by their weights, diagnostics over the tokens that are compared.
    All sums are plain numbers, so that a checkpoint inside a window loses nothing.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = terms
        self._names = [f"sums.{term.name}" for term in terms]
        self._names += [f"diagnostics.{name}" for name in (*_AVERAGED, "saturated", "compared")]
        self.total_tokens = 0.0
        self.reset()

    def reset(self) -> None:
        """Begin a window."""
        self._sums = dict.fromkeys([*self._names, "weighted_loss"], 0.0)
        self._counts = dict.fromkeys(_COUNTED, 0.0)
        self._began = time.monotonic()

    def begin_step(self, counts: Mapping[str, float]) -> None:
        """Say the global counts of a step before its micro-batches are added; `kept`: tokens whatever their weights."""
        self._step_tokens = counts["tokens"]
        for name in _COUNTED:
            self._counts[name] += counts[name]
        self.total_tokens += counts["kept"]

    def add(self, output: HeadOutput) -> None:
        """Add a micro-batch of this process."""
        assert output.loss is not None
        assert output.sums is not None
        assert output.diagnostics is not None
        # A micro-batch's loss is its part of the step's, which counts as often as the step has tokens.
        self._sums["weighted_loss"] += float(output.loss.detach()) * self._step_tokens
        for name, value in output.sums.items():
            self._sums[f"sums.{name}"] += float(value)
        for name in (*_AVERAGED, "saturated", "compared"):
            self._sums[f"diagnostics.{name}"] += float(output.diagnostics.get(name, 0.0))

    def values(self, reduce: Any = None) -> dict[str, float]:
        """Names and values as events carry them. `reduce` sums a tensor over all processes."""
        sums = dict(self._sums)
        if reduce is not None:
            total = reduce(torch.tensor(list(sums.values()), dtype=torch.float64))
            sums = dict(zip(sums, total.tolist(), strict=True))
        tokens = self._counts["tokens"]
        values = {"loss": sums["weighted_loss"] / (tokens or 1.0)}
        for term in self._terms:
            count = self._counts[term.needs.normaliser] or 1.0
            values[f"losses.{term.name}"] = sums[f"sums.{term.name}"] / count
        if compared := sums["diagnostics.compared"]:
            for name in _AVERAGED:
                values[f"diagnostics.{name}"] = sums[f"diagnostics.{name}"] / compared
            values["diagnostics.saturated"] = sums["diagnostics.saturated"]
        kept = self._counts["kept"]
        values["tokens"] = kept
        values["tokens_per_second"] = kept / max(time.monotonic() - self._began, 1e-9)
        return values

    def state_dict(self) -> dict[str, Any]:
        """JSON, for a checkpoint. Time is not in it: a resumed window measures its own."""
        return {"sums": self._sums, "counts": self._counts, "total_tokens": self.total_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; terms of another recipe start at 0."""
        self._sums |= {name: value for name, value in state["sums"].items() if name in self._sums}
        self._counts |= state["counts"]
        self.total_tokens = state["total_tokens"]
