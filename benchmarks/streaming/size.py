"""Part size: bytes a token of codecs, and the error of what they give back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from codec import kl
from rich.table import Table

from limbeck.signals import Signal
from limbeck.signals.codec import decode, encode
from limbeck.signals.fragments import bfloat16_bytes, bfloat16_numbers
from limbeck.signals.topk import log1mexp, logsumexp
from streaming.rows import (
    TEMPERATURES,
    Float64,
    Truth,
    distributions,
    header_of,
    json_text,
    prompt_logprobs,
    token_texts,
)
from streaming.tables import new_table

LEAST = 1e-12  # mass of the rest where the ids' log-probabilities, as they were kept, leave none


@dataclass(frozen=True)
class Decoded:
    """What a codec gives back: bytes a token, and at a temperature the ids' log-probabilities and the rest's."""

    size: float
    at: Callable[[float], tuple[Float64, Float64]]


def limbeck(truth: Truth, texts: dict[int, str]) -> Decoded:
    """The codec with a tail for each temperature."""
    top = truth.top_k(TEMPERATURES)
    header = header_of(truth.vocab_size, top.k, TEMPERATURES)
    packed = encode(Signal(0, top.n, top_k=top), header)
    back = decode(packed, header).top_k
    assert back is not None
    place = np.argsort(np.argsort(truth.ids, axis=1), axis=1)  # equal codes may stand in another order
    order = np.take_along_axis(np.argsort(back.ids, axis=1), place, 1)

    def at(temperature: float) -> tuple[Float64, Float64]:
        _, logprobs, tail = back.at(temperature)
        return np.take_along_axis(logprobs, order, 1), tail

    return Decoded(sum(map(len, packed.fields.values())) / top.n, at)


def fp16(truth: Truth, texts: dict[int, str]) -> Decoded:
    """Ids as int32, log-probabilities as fp16."""
    return _without_rest(truth, truth.on[1.0].astype(np.float16), 4 * truth.ids.shape[1] + 2 * truth.ids.shape[1])


def fp32(truth: Truth, texts: dict[int, str]) -> Decoded:
    """Ids as int32, log-probabilities as fp32."""
    return _without_rest(truth, truth.on[1.0].astype(np.float32), 8 * truth.ids.shape[1])


def json_fp32(truth: Truth, texts: dict[int, str]) -> Decoded:
    """vLLM's JSON of fp32 log-probabilities."""
    logprobs = truth.on[1.0].astype(np.float32)
    return _without_rest(truth, logprobs, len(json_text(prompt_logprobs(truth.ids, logprobs, texts))) / len(truth.ids))


def polynomial(exact: int, powers: tuple[float, ...]) -> Callable[[Truth, dict[int, str]], Decoded]:
    """Ids of ⌈log₂ v⌉ bits, the `exact` best log-probabilities in bf16, a curve through the others.

    The scheme of DistillKit's `LogprobCompressor`, in the configurations of its README. The curve over the rank 0, 1, …
    of the others is Σ c·rank^power, c in fp32, by least squares in float64: the published code solves in float32, which
    is the same at the smaller configuration and much further off at the larger.
    """

    def codec(truth: Truth, texts: dict[int, str]) -> Decoded:
        k, logprobs = truth.ids.shape[1], truth.on[1.0]
        bits = (truth.vocab_size - 1).bit_length()
        best = bfloat16_numbers(bfloat16_bytes(logprobs[:, :exact].astype(np.float32))).reshape(-1, exact)
        terms = np.arange(k - exact, dtype=np.float64)[:, None] ** np.array(powers)
        factors = (logprobs[:, exact:] @ np.linalg.pinv(terms).T).astype(np.float32)
        curve = factors.astype(np.float64) @ terms.T
        size = (k * bits + 7) // 8 + 2 * exact + 4 * len(powers)
        return _without_rest(truth, np.concatenate([best.astype(np.float64), curve], axis=1), size)

    return codec


def _without_rest(truth: Truth, kept: np.ndarray, size: float) -> Decoded:
    """What can be made of log-probabilities at temperature 1 alone.

    The rest's mass is what is left of 1; at another temperature it is taken as evenly spread over the other words.
    """
    raw = kept.astype(np.float64)
    rest_1 = log1mexp(np.minimum(logsumexp(raw), np.log1p(-LEAST)))
    spread = np.log(truth.vocab_size - raw.shape[1])

    def at(temperature: float) -> tuple[Float64, Float64]:
        on, rest = raw / temperature, spread + (rest_1 - spread) / temperature
        total = np.logaddexp(logsumexp(on), rest)
        return on - total[:, None], rest - total

    return Decoded(size, at)


CODECS: list[tuple[str, int, Callable[..., Decoded]]] = [
    ("Limbeck", 64, limbeck),
    ("int32 ids, fp16", 64, fp16),
    ("int32 ids, fp32", 64, fp32),
    ("JSON prompt_logprobs", 64, json_fp32),
    ("Limbeck", 50, limbeck),
    ("polynomial, 1 exact", 50, polynomial(1, (0, 1, 0.5))),
    ("Limbeck", 128, limbeck),
    ("polynomial, 16 exact", 128, polynomial(16, (0, 1, 2, 3, 4, 0.5))),
]


def table(options: argparse.Namespace, folder: Path) -> Table:
    truth = distributions(options, max(k for _, k, _ in CODECS))
    texts = token_texts(options, truth)
    source = "drawn from flat to peaked" if options.model is None else str(options.model)
    title = f"size: {len(truth.ids):,} distributions over {truth.vocab_size:,} words, {source}"
    notes = (
        "KL(p‖p̂), max and mean, float64, p exact. All: over the k ids and all the rest as one more outcome; codecs "
        "without a tail take what is left of 1, evenly spread at T = 2. Ids: over the k ids alone, both scaled to 1. "
        "Limbeck's size is with tails at both temperatures."
    )
    columns = ("k", "B/token", *(f"{what}, T = {t:g}" for what in ("all", "ids") for t in TEMPERATURES))
    found = new_table(title, columns, notes)
    for name, k, codec in CODECS:
        cut = truth.cut(k)
        decoded = codec(cut, texts)
        errors = []
        for scaled in (False, True):
            for temperature in TEMPERATURES:
                p, q = (cut.on[temperature], cut.rest[temperature]), decoded.at(temperature)
                found_kl = kl(*map(_scaled, (p, q))) if scaled else kl(p, q)
                errors.append(f"{found_kl.max():.1e}  {found_kl.mean():.1e}")
        found.add_row(name, str(k), f"{decoded.size:,.0f}", *errors)
    return found


def _scaled(side: tuple[Float64, Float64]) -> tuple[Float64, Float64]:
    on, rest = side
    return on - logsumexp(on)[:, None], np.full_like(rest, -np.inf)
