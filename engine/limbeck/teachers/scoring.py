"""What a loaded model says of sequences: batches by budget, right padded, the head over asked rows by chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import ScoreItem, Want
from limbeck.signals import Signal, TokenLogprobs, TopK
from limbeck.signals.topk import logsumexp
from limbeck.teachers.batching import by_budget
from limbeck.teachers.draws import tally, uniforms
from limbeck.teachers.model import LoadedModel
from limbeck.teachers.sampling import draw

Answers = list[tuple[int, Signal]]
Array = npt.NDArray[Any]


def score(model: LoadedModel, items: Sequence[ScoreItem], want: Want, budget: int) -> Iterator[Answers]:
    """The answers to `items`, as soon as each is complete; checked items only. Raises SCORING_FAILED.

    Each step does one chunk of the head, so that whoever drives the iterator can stop there.
    """
    for positions in by_budget([len(item.ids) for item in items], budget):
        yield from _Batch(model, [items[position] for position in positions], want).answers()


class _Batch:
    """One padded batch. `rows`, flat over the items, counts the asked rows: N in all."""

    def __init__(self, model: LoadedModel, items: list[ScoreItem], want: Want) -> None:
        self.model, self.items, self.want = model, items, want
        self.ends = np.cumsum([item.n for item in items])
        self.starts = self.ends - [item.n for item in items]
        self.size = int(self.ends[-1])
        self.hidden: dict[int, Array] = {}
        # what has been answered so far: by field, one array per chunk
        self.found: dict[str, list[Array]] = {}
        self._asked_ids, self._asked_rows, self._asked_starts = self._asked()

    def answers(self) -> Iterator[Answers]:
        states = self._states()
        if self.want.primitives() == {"hidden_states"}:
            yield [(item.item_id, self._signal(i, {})) for i, item in enumerate(self.items)]
            return
        told = 0
        for start in range(0, self.size, self.model.chunk_rows):
            stop = min(start + self.model.chunk_rows, self.size)
            for name, value in self._chunk(states[start:stop], start, stop).items():
                self.found.setdefault(name, []).append(value)
            complete = int(np.searchsorted(self.ends, stop, side="right"))
            if complete > told:
                flat = {name: np.concatenate(parts) for name, parts in self.found.items()}
                yield [(self.items[i].item_id, self._signal(i, flat)) for i in range(told, complete)]
                told = complete
            else:
                yield []

    def _states(self) -> Tensor:
        """Last hidden states [N, d] of the asked rows; keeps the asked layers in `hidden`."""
        longest = max(len(item.ids) for item in self.items)
        ids = np.zeros((len(self.items), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, item in enumerate(self.items):
            ids[row, : len(item.ids)] = item.ids
            mask[row, : len(item.ids)] = 1
        device = self.model.device
        outputs = self.model.body(
            torch.from_numpy(ids).to(device),
            torch.from_numpy(mask).to(device),
            output_hidden_states=bool(self.want.layers),
        )
        rows = [row * longest + item.first_row + np.arange(item.n) for row, item in enumerate(self.items)]
        take = torch.from_numpy(np.concatenate(rows)).to(device)
        last: Tensor = outputs.last_hidden_state.flatten(0, 1)[take]
        for layer in self.want.layers:
            is_last = layer in (-1, len(outputs.hidden_states) - 1)
            states = last if is_last else outputs.hidden_states[layer].flatten(0, 1)[take]
            self.hidden[layer] = states.float().cpu().numpy()
            self._refuse(np.asarray(~np.isfinite(self.hidden[layer]).all(axis=1)), 0)
        return last

    def _asked(self) -> tuple[Array, Array, Array]:
        """The asked ids of all rows, flat; the row of each; and where each row's begin [N + 1]."""
        if not self.want.token_ids:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(self.size + 1, np.int64)
        counts: list[Array] = []
        for item in self.items:
            assert item.token_ids is not None  # by the check of requests
            width = item.token_ids.shape[-1]
            counts.append(np.full(item.n, width) if item.offsets is None else np.diff(item.offsets))
        lengths = np.concatenate(counts)
        ids = np.concatenate([np.ravel(item.token_ids) for item in self.items]).astype(np.int64)  # type: ignore[arg-type]
        return ids, np.repeat(np.arange(self.size), lengths), np.concatenate([[0], np.cumsum(lengths)])

    def _chunk(self, states: Tensor, start: int, stop: int) -> dict[str, Array]:
        """Everything asked of rows `start` … `stop − 1`, as float64 or float32 arrays over those rows."""
        want, device = self.want, self.model.device
        logits = self.model.logits(states)
        best = torch.topk(logits, max(want.top_k, 1))
        picked: dict[str, Array] = {}
        if want.target:
            picked["target"] = _at(logits, np.arange(stop - start), self._next_ids()[start:stop])
        if want.token_ids:
            asked = slice(self._asked_starts[start], self._asked_starts[stop])
            picked["asked"] = _at(logits, self._asked_rows[asked] - start, self._asked_ids[asked])
        if want.samples:
            drawn = draw(logits, torch.from_numpy(self._uniforms()[start:stop]).to(device))
            picked["drawn"] = drawn.cpu().numpy()
            picked["drawn_logprobs"] = logits.gather(1, drawn).cpu().numpy().astype(np.float64)
        rest = logits.clone() if want.full else logits
        rest.scatter_(1, best.indices, float("-inf"))
        values = best.values.cpu().numpy().astype(np.float64)
        # one row's mass: the k best exactly, in float64, and a logsumexp over the complement
        tail_1 = _complement(rest, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):
            total_1 = np.logaddexp(logsumexp(values), tail_1)
        self._refuse(~np.isfinite(total_1), start)
        for name in picked.keys() & {"target", "drawn_logprobs"}:
            picked[name] = (picked[name].T - total_1).T
        if want.token_ids:
            picked["asked"] -= total_1[self._asked_rows[asked] - start]
        if want.full:
            picked["full"] = (logits - torch.from_numpy(total_1).to(device)[:, None]).cpu().numpy().astype(np.float32)
        if want.top_k:
            picked["ids"] = best.indices.cpu().numpy()
            picked["logprobs"] = values - total_1[:, None]
            tails = [
                _tail(values, tail_1 if temperature == 1 else _complement(rest, temperature), temperature)
                for temperature in want.temperatures
            ]
            picked["tails"] = np.stack(tails, axis=1) if tails else np.zeros((stop - start, 0))
        return picked

    def _next_ids(self) -> Array:
        return np.concatenate([item.ids[item.first_row + 1 : item.first_row + item.n + 1] for item in self.items])

    def _uniforms(self) -> Array:
        return np.concatenate([uniforms(item.seed, item.item_id, (item.n, self.want.samples)) for item in self.items])

    def _signal(self, i: int, flat: dict[str, Array]) -> Signal:
        """Item i's answer out of arrays over all rows that are done."""
        item, rows = self.items[i], slice(self.starts[i], self.ends[i])
        top_k = asked = samples = None
        if self.want.top_k:
            top_k = TopK.from_logprobs(
                flat["ids"][rows], flat["logprobs"][rows], flat["tails"][rows], self.want.temperatures
            )
        if self.want.token_ids:
            assert item.token_ids is not None
            part = flat["asked"][self._asked_starts[rows.start] : self._asked_starts[rows.stop]]
            asked = TokenLogprobs(
                item.token_ids, part.astype(np.float32).reshape(item.token_ids.shape), offsets=item.offsets
            )
        if self.want.samples:
            samples = tally(flat["drawn"][rows], flat["drawn_logprobs"][rows])
        return Signal(
            first_row=item.first_row,
            n=item.n,
            top_k=top_k,
            target=flat["target"][rows].astype(np.float32) if self.want.target else None,
            token_ids=asked,
            samples=samples,
            hidden={layer: states[rows].copy() for layer, states in self.hidden.items()},
            full=flat["full"][rows].copy() if self.want.full else None,
        )

    def _refuse(self, bad: Array, start: int) -> None:
        """Raise SCORING_FAILED for the items whose rows are marked in `bad`, which counts from row `start`."""
        rows = np.flatnonzero(bad) + start
        hint = "the weights hold NaN, or the precision overflows: try dtype float32"
        problems = []
        for i in np.unique(np.searchsorted(self.ends, rows, side="right")):
            row = int(rows[rows >= self.starts[i]][0] - self.starts[i]) + self.items[i].first_row
            field = f"item {self.items[i].item_id}"
            problems.append(Problem(f"the model's numbers are not finite from row {row} on", field=field, hint=hint))
        if problems:
            raise LimbeckError(Reason.SCORING_FAILED, problems=problems)


def _at(logits: Tensor, rows: Array, ids: Array) -> Array:
    device = logits.device
    return (
        logits[torch.from_numpy(rows).to(device), torch.from_numpy(ids.astype(np.int64)).to(device)]
        .double()
        .cpu()
        .numpy()
    )


def _complement(rest: Tensor, temperature: float) -> Array:
    """logsumexp(rest / T) [n] over what is not among the k best (those are −inf in `rest`)."""
    scaled = rest if temperature == 1 else rest / temperature
    return torch.logsumexp(scaled, -1).cpu().numpy().astype(np.float64)


def _tail(values: Array, complement: Array, temperature: float) -> Array:
    """Log share [n] of the complement at T, from the k best logits [n, k]; −inf where there is no complement."""
    result: Array = complement - np.logaddexp(logsumexp(values / temperature), complement)
    return result
