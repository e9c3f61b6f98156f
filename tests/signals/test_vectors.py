"""The wire format as other languages see it: pinned files, and a decoder that shares no code with ours."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.signals import SignalHeader, TopK
from limbeck.signals.codec import Packed, decode

FOLDER = Path(__file__).parents[1] / "data" / "signal_vectors"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def independent_decoder(header: dict[str, Any], n: int, raw: bytes) -> dict[str, list[Any]]:
    """docs/signals.md in plain Python: ids, codes, tails, target, and log-probabilities by temperature."""
    k, temperatures = header["k"], header["temperatures"]
    h = max(0, (header["vocab_size"] - 1).bit_length() - 16)
    high_bytes = (k * h + 7) // 8
    at = 0

    def read(count: int, kind: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{count}{kind}", raw, at)
        at += struct.calcsize(f"<{count}{kind}")
        return values

    out: dict[str, list[Any]] = {"ids": [], "codes": [], "tails": [], "target": [], "normalised": []}
    if k:
        low = [read(k, "H") for _ in range(n)]
        high = [int.from_bytes(bytes(read(high_bytes, "B")), "little") for _ in range(n)]
        out["ids"] = [[low[r][i] | (high[r] >> (i * h) & (1 << h) - 1) << 16 for i in range(k)] for r in range(n)]
        out["codes"] = [list(read(k, "H")) for _ in range(n)]
        out["tails"] = [list(read(len(temperatures), "f")) for _ in range(n)]
    if header["target"]:
        out["target"] = list(read(n, "f"))
    assert at == len(raw)
    for m, temperature in enumerate(temperatures if k else []):
        rows = []
        for codes, tails in zip(out["codes"], out["tails"], strict=True):
            x = [(-u / 2048 if u < 32768 else -16 - (u - 32768) / 512) / temperature for u in codes]
            rest = math.log(-math.expm1(tails[m])) if tails[m] > -0.6931 else math.log1p(-math.exp(tails[m]))
            shift = rest - max(x) - math.log(sum(math.exp(y - max(x)) for y in x))
            rows.append([y + shift for y in x])
        out["normalised"].append(rows)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_an_independent_decoder_reads_what_the_vector_says(name: str) -> None:
    value = json.loads((FOLDER / f"{name}.json").read_text())
    read = independent_decoder(value["header"], value["n"], (FOLDER / f"{name}.bin").read_bytes())
    for field in ("ids", "codes"):
        assert read[field] == value.get(field, [])
    for field in ("tails", "target"):
        assert read[field] == _floats(value.get(field, []))
    for temperature, rows in zip(value["header"]["temperatures"], read["normalised"], strict=False):
        np.testing.assert_allclose(rows, value["normalised"][f"{temperature:g}"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_our_decoder_and_encoder_agree_with_the_vector(name: str) -> None:
    value = json.loads((FOLDER / f"{name}.json").read_text())
    header = SignalHeader.from_json(value["header"])
    assert header.to_json() == value["header"]
    raw, at = (FOLDER / f"{name}.bin").read_bytes(), 0
    fields = {}
    for field, size in value["bytes"].items():
        fields[field] = raw[at : at + size]
        at += size
    signal = decode(Packed(value["first_row"], value["n"], fields), header)
    assert (signal.first_row, signal.n) == (value["first_row"], value["n"])
    if header.k:
        assert signal.top_k is not None
        assert signal.top_k.ids.tolist() == value["ids"]
        assert signal.top_k.u.tolist() == value["codes"]
        assert signal.top_k.tails.tolist() == _floats(value["tails"])
        given = {name: np.array(_floats(item)) for name, item in value["input"].items()}
        again = TopK.from_logprobs(given["ids"].astype(int), given["logprobs"], given["tails"], header.temperatures)
        assert again.ids.tolist() == value["ids"]
        assert again.u.tolist() == value["codes"]
    if header.target:
        assert signal.target is not None
        assert signal.target.tolist() == _floats(value["target"])


def test_the_committed_vectors_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_vectors", Path(__file__).with_name("make_vectors.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.make()
    assert sorted(made) == NAMES
    for name, (value, raw) in made.items():
        assert (FOLDER / f"{name}.bin").read_bytes() == raw
        held, value = json.loads((FOLDER / f"{name}.json").read_text()), json.loads(script.text(value))
        now, before = value.pop("normalised", {}), held.pop("normalised", {})
        assert held == value
        for temperature in before:  # the last digits are this machine's exponential
            np.testing.assert_allclose(now[temperature], before[temperature], rtol=1e-10)


def _floats(value: Any) -> Any:
    return [_floats(item) for item in value] if isinstance(value, list) else float(value)


def test_the_decoder_that_the_guide_prints_reads_the_vectors() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "signals.md").read_text()
    block = next(part.split("```")[0] for part in guide.split("```python\n") if part.startswith("import math, struct"))
    scope: dict[str, Any] = {}
    exec(block, scope)
    for name in ("temperatures_and_target", "three_high_bits_across_bytes", "whole_vocabulary", "edges_of_the_code"):
        value = json.loads((FOLDER / f"{name}.json").read_text())
        rows = scope["decode"](value["header"], value["n"], (FOLDER / f"{name}.bin").read_bytes())
        assert [row[0] for row in rows] == value["ids"]
        assert [list(row[2]) for row in rows] == _floats(value["tails"])
        for temperature in value["header"]["temperatures"]:
            read = [row[1][temperature] for row in rows]
            np.testing.assert_allclose(read, value["normalised"][f"{temperature:g}"], rtol=1e-10, atol=1e-12)
