"""What is sent and stored: distributions of a model or drawn ones, and run folders with their signals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from codec import model_logits, random_logits

from limbeck.data import TokenSequence
from limbeck.data.store import write_sequences
from limbeck.signals import Signal, SignalHeader, SignalWriter, TopK
from limbeck.signals.topk import logsumexp

TEMPERATURES = (1.0, 2.0)
LENGTH = 512  # rows of a stored sequence
TOKENIZER = Path(__file__).parents[2] / "tests" / "data" / "tok_a"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """The k most likely ids [n, k], best first, and at each temperature their log-probabilities and the rest's.

    All over the whole vocabulary, in float64: `on` [n, k], `rest` [n].
    """

    vocab_size: int
    ids: npt.NDArray[np.int32]
    on: Mapping[float, Float64]
    rest: Mapping[float, Float64]

    def cut(self, k: int) -> Truth:
        """The same with fewer ids: those left out join the rest."""
        rest = {t: np.logaddexp(self.rest[t], logsumexp(on[:, k:])) for t, on in self.on.items()}
        return Truth(self.vocab_size, self.ids[:, :k], {t: on[:, :k] for t, on in self.on.items()}, rest)

    def top_k(self, temperatures: tuple[float, ...]) -> TopK:
        """As Limbeck encodes it."""
        tails = np.stack([self.rest[t] for t in temperatures], axis=1)
        return TopK.from_logprobs(self.ids, self.on[1.0], tails, temperatures)


def distributions(options: argparse.Namespace, k: int) -> Truth:
    """`options.rows` distributions of the model, or drawn ones from flat to peaked."""
    source = random_logits if options.model is None else model_logits
    parts = [_truth(logits, k) for logits in source(argparse.Namespace(**(vars(options) | {"tokens": options.rows})))]
    return Truth(
        parts[0].vocab_size,
        np.concatenate([part.ids for part in parts]),
        {t: np.concatenate([part.on[t] for part in parts]) for t in TEMPERATURES},
        {t: np.concatenate([part.rest[t] for part in parts]) for t in TEMPERATURES},
    )


def _truth(logits: Float64, k: int) -> Truth:
    ids = np.argpartition(-logits, k, axis=1)[:, :k]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logits, ids, 1), axis=1, kind="stable"), 1)
    on, rest = {}, {}
    for temperature in TEMPERATURES:
        every = logits / temperature
        every -= logsumexp(every)[:, None]
        on[temperature] = np.take_along_axis(every, ids, 1)
        np.put_along_axis(every, ids, -np.inf, 1)
        rest[temperature] = logsumexp(every)
    return Truth(logits.shape[1], ids.astype(np.int32), on, rest)


def header_of(vocab_size: int, k: int, temperatures: tuple[float, ...]) -> SignalHeader:
    """A header of signals that are nobody's."""
    return SignalHeader(
        vocab_size=vocab_size,
        k=k,
        temperatures=temperatures,
        target=False,
        tokenizer_digest="",
        template_digest=None,
        weights_digest="",
        teacher="benchmark",
    )


def store(truth: Truth, tokens: int, run: Path) -> int:
    """A run's folder with about `tokens` rows of signals at temperature 1, repeated as needed; how many sequences."""
    count = max(1, round(tokens / LENGTH))
    top, draw = truth.top_k((1.0,)), np.random.default_rng(0)
    trained = np.arange(LENGTH + 1) > 0
    offsets = np.zeros((LENGTH + 1, 2), np.int32)
    sequences = [
        TokenSequence(
            i, draw.integers(0, truth.vocab_size, LENGTH + 1).astype(np.int32), trained, offsets, "drawn", i + 1
        )
        for i in range(count)
    ]
    write_sequences(run / "sequences" / "train.arrow", sequences)
    with SignalWriter(run / "signals" / "train", header_of(truth.vocab_size, top.k, (1.0,))) as writer:
        for place, sequence in enumerate(sequences):
            rows = (np.arange(LENGTH) + place * LENGTH) % top.n
            writer.add(sequence, Signal(sequence.first_row, sequence.n, top_k=top.take(rows)))
    return count


def token_texts(options: argparse.Namespace, truth: Truth) -> dict[int, str]:
    """What each id says: the model's tokens, or made-up words."""
    ids = np.unique(truth.ids).tolist()
    if options.model is None:
        return {number: f" w{number}" for number in ids}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    return {number: tokenizer.decode([number]) for number in ids}


def prompt_logprobs(
    ids: npt.NDArray[np.int32], logprobs: npt.NDArray[Any], texts: Mapping[int, str]
) -> list[dict[str, dict[str, object]] | None]:
    """One object a position, by token id, best first, as vLLM's servers write them; nothing for the first token."""
    positions: list[dict[str, dict[str, object]] | None] = [None]
    for row_ids, row in zip(ids.tolist(), logprobs.tolist(), strict=True):
        entries = enumerate(zip(row_ids, row, strict=True), 1)
        positions.append(
            {str(i): {"logprob": value, "rank": rank, "decoded_token": texts[i]} for rank, (i, value) in entries}
        )
    return positions


def json_text(value: object) -> bytes:
    """Compact, as web frameworks write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
