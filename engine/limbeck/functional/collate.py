"""Sequences and their signals as one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.data.sequence import TokenSequence
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.functional.batch import Answer, SignalBatch
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK
from limbeck.signals.topk import SATURATED

Rows = npt.NDArray[np.int64]


def collate(
    sequences: Sequence[TokenSequence],
    signals: Sequence[Signal | None],
    temperatures: Sequence[float],
    *,
    pad_id: int,
    top_k: int | None = None,
) -> tuple[dict[str, Tensor], SignalBatch]:
    """One micro-batch: ({`input_ids`, `attention_mask`} int64 [b, t], right padded; its kept tokens and signals).

    A signal's rows are matched with its sequence's by position, and only those of kept tokens go in. `temperatures`:
    those at which `top_k` answers are decoded. `top_k`: the largest support any loss uses; what is beyond it goes to
    the tail. A signal of None is for losses that need none. Tokens of which a `partial` signal says nothing are kept,
    and marked in the answers' `said`. Raises SIGNAL_INVALID where another signal does not cover its sequence's kept
    rows, or has not what another of the batch has.
    """
    if len(signals) != len(sequences):
        raise LimbeckError(Reason.SIGNAL_INVALID, f"{len(signals)} signals came for {len(sequences)} sequences.")
    kept = [sequence.kept for sequence in sequences]
    covered, said = _covered(sequences, signals, kept)
    inputs = _inputs(sequences, pad_id)
    batch_n = np.repeat(np.arange(len(sequences)), [len(rows) for rows in kept])
    time_n = _joined(kept, np.int64)
    answers: dict[str, Answer] = {}
    saturated = 0
    tops = _all(sequences, signals, "top_k")
    if tops:
        found, saturated = _top_k(tops, covered, temperatures, top_k)
        answers["top_k"] = _spread(found, said)
    labels = torch.from_numpy(_joined([s.ids[rows + 1] for s, rows in zip(sequences, kept, strict=True)], np.int64))
    targets = _all(sequences, signals, "target")
    if targets:
        logprob = _float([target[rows] for target, rows in zip(targets, covered, strict=True)])
        spoken = labels if said is None else labels[said]
        found = Answer(spoken[:, None], {1.0: (logprob[:, None], _rest(logprob[:, None]))})
        answers["target"] = _spread(found, said)
    asked = _all(sequences, signals, "token_ids")
    if asked:
        answers["token_ids"] = _asked(asked, covered)
    draws = _all(sequences, signals, "samples")
    if draws:
        answers["samples"] = _drawn(draws, covered)
    full = _all(sequences, signals, "full")
    layers = sorted({layer for signal in signals if signal is not None for layer in signal.hidden})
    hidden = {layer: _float(_hidden(sequences, signals, covered, layer)) for layer in layers}
    return inputs, SignalBatch(
        labels=labels,
        answers=answers,
        full=_float([x[rows] for x, rows in zip(full, covered, strict=True)]) if full else None,
        hidden=hidden,
        batch_n=torch.from_numpy(batch_n),
        time_n=torch.from_numpy(time_n),
        row_n=torch.from_numpy(batch_n),
        offsets_n2=torch.from_numpy(
            _joined([s.offsets[rows + 1] for s, rows in zip(sequences, kept, strict=True)], np.int64).reshape(-1, 2)
        ),
        pair_r=torch.from_numpy(_pairs(sequences)),
        chosen_r=torch.tensor([sequence.chosen for sequence in sequences], dtype=torch.bool),
        places=tuple((sequence.source, sequence.line) for sequence in sequences),
        saturated=saturated,
        weights_n=_weights(sequences, kept),
    )


def _weights(sequences: Sequence[TokenSequence], kept: Sequence[Rows]) -> Tensor | None:
    """Weight of each kept token, float32 [n]; None where each is 1."""
    parts = [
        np.ones(len(rows), np.float32) if s.weights is None else s.weights[rows + 1]
        for s, rows in zip(sequences, kept, strict=True)
    ]
    weights_n = _float(parts)
    return None if bool((weights_n == 1).all()) else weights_n


def _spread(answer: Answer, said: Tensor | None) -> Answer:
    """An answer on the tokens that `said` [n] marks as one on all n: the others have no id, all mass is tail."""
    if said is None:
        return answer

    def over(values: Tensor, fill: float) -> Tensor:
        whole = values.new_full((len(said), *values.shape[1:]), fill)
        whole[said] = values
        return whole

    at = {t: (over(on_support, -torch.inf), over(tail, 0.0)) for t, (on_support, tail) in answer.at.items()}
    return Answer(over(answer.ids, -1), at, said=said)


def _top_k(
    tops: Sequence[TopK], covered: Sequence[Rows], temperatures: Sequence[float], top_k: int | None
) -> tuple[Answer, int]:
    """The decoded answer and its count of saturated entries.

    Of a saturated entry nothing is known but that it is −79.998 or less, −inf included: it is left to the student's
    and the teacher's tail (id −1), so that an id impossible for both sides never makes a loss infinite.
    """
    width = min([top.k for top in tops] + ([top_k] if top_k else []))
    taken = [top.take(rows) for top, rows in zip(tops, covered, strict=True)]
    codes = torch.from_numpy(_joined([top.u[:, :width] for top in taken], np.int64))
    saturated = codes == SATURATED
    ids = torch.from_numpy(_joined([top.ids[:, :width] for top in taken], np.int64)).masked_fill(saturated, -1)
    at = {}
    for temperature in temperatures:
        decoded = [top.at(temperature, width) for top in taken]
        on_support = _float([logprobs for _, logprobs, _ in decoded]).masked_fill(saturated, -torch.inf)
        tail = _float([tail for _, _, tail in decoded])
        # What was left out is e^(−80/T) of the mass each: what remains must sum to 1, or a divergence goes negative.
        total = torch.logsumexp(torch.cat([on_support, tail[:, None]], dim=1), dim=1)
        total = total.masked_fill(~saturated.any(1), 0.0)
        at[temperature] = (on_support - total[:, None], tail - total)
    return Answer(ids, at), int(saturated.sum())


def _inputs(sequences: Sequence[TokenSequence], pad_id: int) -> dict[str, Tensor]:
    width = max((len(sequence.ids) for sequence in sequences), default=0)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.from_numpy(sequence.ids.astype(np.int64))
        mask[row, : len(sequence.ids)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _pairs(sequences: Sequence[TokenSequence]) -> Rows:
    """Pair of each row, counted from 0 within the batch; −1 for none."""
    numbers: dict[int, int] = {}
    return np.array([-1 if s.pair < 0 else numbers.setdefault(s.pair, len(numbers)) for s in sequences], dtype=np.int64)


def _covered(
    sequences: Sequence[TokenSequence], signals: Sequence[Signal | None], kept: Sequence[Rows]
) -> tuple[list[Rows], Tensor | None]:
    """Where in its signal each sequence's kept rows are, and which of all kept rows are there, None for all."""
    problems, covered, marks = [], [], []
    for sequence, signal, rows in zip(sequences, signals, kept, strict=True):
        if signal is None:
            covered.append(rows)
            marks.append(np.ones(len(rows), np.bool_))
            continue
        places = rows - signal.first_row
        marks.append(places < signal.n if signal.partial else np.ones(len(rows), np.bool_))
        places = places[marks[-1]]
        covered.append(places)
        if signal.partial and {name for name, _ in _lengths(signal)} - {"top_k", "target"}:
            text = "only top_k and target can be there for some rows alone"
            problems.append(Problem(text, file=sequence.source, line=sequence.line))
        if len(places) and (places[0] < 0 or places[-1] >= signal.n):
            last = signal.first_row + signal.n - 1
            text = f"the signal covers rows {signal.first_row} to {last}; kept are {rows[0]} to {rows[-1]}"
            problems.append(Problem(text, file=sequence.source, line=sequence.line))
        for name, length in _lengths(signal):
            if length != signal.n:
                text = f"the signal's {name} has {length} rows where {signal.n} are stated"
                problems.append(Problem(text, file=sequence.source, line=sequence.line))
    if problems:
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=problems)
    said = torch.from_numpy(_joined(marks, np.bool_))
    return covered, None if bool(said.all()) else said


def _lengths(signal: Signal) -> list[tuple[str, int]]:
    found = [(f"layer {layer}", len(x)) for layer, x in signal.hidden.items()]
    if signal.top_k is not None:
        found += [("top_k", len(signal.top_k.ids))]
    if signal.target is not None:
        found += [("target", len(signal.target))]
    if signal.samples is not None:
        found += [("samples", len(signal.samples.ids))]
    if signal.token_ids is not None:
        asked = signal.token_ids
        found += [("token_ids", len(asked.logprobs) if asked.offsets is None else len(asked.offsets) - 1)]
    if signal.full is not None:
        found += [("full", len(signal.full))]
    return found


def _all(sequences: Sequence[TokenSequence], signals: Sequence[Signal | None], name: str) -> list[Any]:
    """A field of every signal; empty where none has it. Raises SIGNAL_INVALID where only some have it."""
    values = [None if signal is None else getattr(signal, name) for signal in signals]
    there = [value for value in values if value is not None]
    if there and len(there) < len(values):
        problems = [
            Problem(f"the signal has no {name}, others of the batch have", file=sequence.source, line=sequence.line)
            for sequence, value in zip(sequences, values, strict=True)
            if value is None
        ]
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=problems)
    return there


def _hidden(
    sequences: Sequence[TokenSequence], signals: Sequence[Signal | None], covered: Sequence[Rows], layer: int
) -> list[npt.NDArray[np.float32]]:
    found, problems = [], []
    for sequence, signal, rows in zip(sequences, signals, covered, strict=True):
        if signal is None or layer not in signal.hidden:
            text = f"the signal has no hidden states of layer {layer}, others of the batch have"
            problems.append(Problem(text, file=sequence.source, line=sequence.line))
        else:
            found.append(signal.hidden[layer][rows])
    if problems:
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=problems)
    return found


def _asked(asked: Sequence[TokenLogprobs], covered: Sequence[Rows]) -> Answer:
    """Dense or CSR answers to `token_ids`, padded with id −1 to the widest row."""
    ids: list[npt.NDArray[np.int32]] = []
    logprobs: list[npt.NDArray[np.float32]] = []
    for answer, rows in zip(asked, covered, strict=True):
        if answer.offsets is None:
            ids += list(answer.ids[rows])
            logprobs += list(answer.logprobs[rows])
        else:
            spans = [slice(answer.offsets[row], answer.offsets[row + 1]) for row in rows]
            ids += [answer.ids[span] for span in spans]
            logprobs += [answer.logprobs[span] for span in spans]
    width = max((len(row) for row in ids), default=0)
    ids_nk = np.full((len(ids), width), -1, dtype=np.int64)
    logprobs_nk = np.full((len(ids), width), -np.inf, dtype=np.float32)
    for n, (row_ids, row_logprobs) in enumerate(zip(ids, logprobs, strict=True)):
        ids_nk[n, : len(row_ids)] = row_ids
        logprobs_nk[n, : len(row_ids)] = row_logprobs
    on_support = torch.from_numpy(logprobs_nk)
    return Answer(torch.from_numpy(ids_nk), {1.0: (on_support, _rest(on_support))})


def _drawn(draws: Sequence[Samples], covered: Sequence[Rows]) -> Answer:
    """Draws with their counts, padded with id −1; nothing is known of the rest."""
    width = max(draw.ids.shape[1] for draw in draws)

    def padded(field: str, fill: float) -> list[npt.NDArray[np.float64]]:
        parts = [getattr(draw, field)[rows] for draw, rows in zip(draws, covered, strict=True)]
        return [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill) for x in parts]

    counts = torch.from_numpy(_joined(padded("counts", 0), np.int64))
    ids = torch.from_numpy(_joined(padded("ids", -1), np.int64)).masked_fill(counts == 0, -1)
    on_support = _float(padded("logprobs", -np.inf))
    return Answer(ids, {1.0: (on_support, torch.full_like(on_support[:, 0], -torch.inf))}, counts)


def _rest(on_support: Tensor) -> Tensor:
    """log(1 − Σ) [n]: all that is known of the rest where a teacher gave some ids only; −inf where Σ reaches 1."""
    return torch.log1p(-on_support.double().exp().sum(1).clamp(max=1.0)).float()


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([part.astype(dtype) for part in parts]) if parts else np.zeros(0, dtype)


def _float(parts: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(_joined(parts, np.float32))
