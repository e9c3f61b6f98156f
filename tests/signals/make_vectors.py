"""Writes tests/data/signal_vectors: small signals as bytes, with what a right decoder reads from them.

Run it from the project's root: ``python tests/signals/make_vectors.py``. Each case is NAME.bin, the fields one after
another in the order of the header's `dtypes`, and NAME.json. Numbers come from integers and from random.random(), so
that every machine writes the same bytes.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.signals import Signal, SignalHeader, TopK
from limbeck.signals.codec import encode

FOLDER = Path(__file__).parents[1] / "data" / "signal_vectors"


def make() -> dict[str, tuple[dict[str, Any], bytes]]:
    """Name to (JSON, bytes) of every case."""
    return {
        "one_temperature_k64": _drawn(1, 262144, 64, (1.0,), rows=4, first_row=11),
        "temperatures_and_target": _drawn(2, 262144, 8, (0.5, 1.0, 2.0, 8.0), rows=3, first_row=0, target=True),
        "no_high_bits": _drawn(3, 32000, 5, (1.0,), rows=3, first_row=2, target=True),
        "one_high_bit_padded": _drawn(4, 128256, 3, (1.0, 1.5), rows=3, first_row=1),
        "three_high_bits_across_bytes": _drawn(5, 300000, 5, (1.0,), rows=3, first_row=7),
        "eleven_high_bits_across_bytes": _drawn(6, 100_000_000, 7, (2.0,), rows=2, first_row=7),
        "whole_vocabulary": _whole_vocabulary(),
        "edges_of_the_code": _edges(),
        "target_only": _target_only(),
    }


def _header(vocab_size: int, k: int, temperatures: tuple[float, ...], target: bool) -> SignalHeader:
    return SignalHeader(
        vocab_size=vocab_size,
        k=k,
        temperatures=temperatures,
        target=target,
        tokenizer_digest="00" * 32,
        template_digest=None,
        weights_digest="11" * 32,
        teacher="vectors",
    )


def _drawn(
    seed: int,
    vocab_size: int,
    k: int,
    temperatures: tuple[float, ...],
    *,
    rows: int,
    first_row: int,
    target: bool = False,
) -> tuple[dict[str, Any], bytes]:
    draw = random.Random(seed)
    ids, logprobs, tails, targets = [], [], [], []
    for _ in range(rows):
        # weights in 2^-20, so that the sums below are exact; a quarter of the mass and more lies in the tail
        weights = [1 + int(draw.random() ** 4 * 2**20) for _ in range(k)]
        total = sum(weights) + 2**18 + int(draw.random() * 2**18)
        chosen: list[int] = []
        while len(chosen) < k:
            token = int(draw.random() * vocab_size)
            chosen += [] if token in chosen else [token]
        ids.append(chosen)
        # on a grid of 2^-14: no code depends on the last bit of a machine's logarithm
        logprobs.append([_grid(math.log(weight / total)) for weight in weights])
        tails.append([_grid(math.log(1 - sum(weights) / total) / temperature) for temperature in temperatures])
        targets.append(-int(draw.random() * 2**16) / 2**12)
    return _case(_header(vocab_size, k, temperatures, target), first_row, ids, logprobs, tails, targets)


def _grid(value: float) -> float:
    return round(value * 2**14) / 2**14


def _whole_vocabulary() -> tuple[dict[str, Any], bytes]:
    logprobs = [[_grid(math.log(p)) for p in (0.05, 0.4, 0.1, 0.05, 0.2, 0.15, 0.05)], [0.0, *[-math.inf] * 6]]
    header = _header(7, 7, (1.0, 4.0), target=False)
    return _case(header, 0, [list(range(7))] * 2, logprobs, [[-math.inf] * 2] * 2, [])


def _edges() -> tuple[dict[str, Any], bytes]:
    values = [0.0009765625, -0.000244140625, -0.000732421875, -15.9998779296875, -16.0, -16.0009765625, -16.0029296875]
    values += [-79.998046875, -80.5, -math.inf, -2.5, -2.5]
    ids = [900, 100, 101, 102, 103, 104, 105, 106, 107, 108, 70000, 65535]
    header = _header(70001, len(values), (3.0,), target=False)  # at another temperature they need not sum to 1
    return _case(header, 0, [ids], [values], [[-4.25]], [])


def _target_only() -> tuple[dict[str, Any], bytes]:
    return _case(_header(262144, 0, (1.0,), target=True), 3, [], [], [], [-0.125, -33.5, 0.0, -math.inf])


def _case(
    header: SignalHeader,
    first_row: int,
    ids: list[list[int]],
    logprobs: list[list[float]],
    tails: list[list[float]],
    target: list[float],
) -> tuple[dict[str, Any], bytes]:
    top = None
    if header.k:
        top = TopK.from_logprobs(np.array(ids), np.array(logprobs), np.array(tails), header.temperatures)
    n = top.n if top is not None else len(target)
    given = np.array(target, np.float32) if header.target else None
    packed = encode(Signal(first_row, n, top_k=top, target=given), header)
    value: dict[str, Any] = {"header": header.to_json(), "first_row": first_row, "n": n}
    value["bytes"] = {name: len(packed.fields[name]) for name in header.row_bytes}
    if top is not None:
        value["input"] = {"ids": ids, "logprobs": _numbers(logprobs), "tails": _numbers(tails)}
        value["ids"] = top.ids.tolist()
        value["codes"] = top.u.tolist()
        value["tails"] = _numbers(top.tails.tolist())
        value["normalised"] = {
            f"{t:g}": [[float(f"{x:.12g}") for x in row] for row in top.at(t)[1].tolist()] for t in header.temperatures
        }
    if given is not None:
        value["target"] = _numbers(given.tolist())
    return value, b"".join(packed.fields[name] for name in header.row_bytes)


def _numbers(value: Any) -> Any:
    """JSON has no infinity: it is written as protobuf writes it."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return "-Infinity" if value == -math.inf else value


def text(value: dict[str, Any]) -> str:
    """JSON with one line for each top-level key."""
    lines = [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (value, raw) in make().items():
        (FOLDER / f"{name}.json").write_text(text(value))
        (FOLDER / f"{name}.bin").write_bytes(raw)
