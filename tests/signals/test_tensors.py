"""Signals as tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError, Reason
from limbeck.signals import Samples, Signal, TokenLogprobs, TopK


def read_only(values):
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), values.dtype).reshape(values.shape)


def top_k() -> TopK:
    logits = np.random.default_rng(0).normal(size=(3, 9)) * 3
    ids = np.argsort(-logits, axis=1)[:, :4]
    tails = []
    for temperature in (1.0, 2.0):
        scaled = logits / temperature - np.logaddexp.reduce(logits / temperature, axis=1)[:, None]
        if temperature == 1.0:
            logprobs = np.take_along_axis(scaled, ids, 1)
        np.put_along_axis(scaled, ids, -np.inf, 1)
        tails.append(np.logaddexp.reduce(scaled, axis=1))
    return TopK.from_logprobs(ids, logprobs, np.stack(tails, 1), (1.0, 2.0))


def test_a_support_is_normalised_at_each_of_its_temperatures():
    top = top_k()
    tensors = Signal(5, 3, top_k=top).to_torch()
    assert set(tensors) == {"ids", "logprobs", "tails"}
    assert torch.equal(tensors["ids"], torch.from_numpy(top.ids.astype(np.int64)))
    assert tensors["logprobs"].shape == (2, 3, 4)
    mass = tensors["logprobs"].exp().sum(2) + tensors["tails"].exp()
    torch.testing.assert_close(mass, torch.ones(2, 3))
    np.testing.assert_allclose(tensors["logprobs"][1], top.at(2.0)[1], rtol=1e-6)


def test_everything_else_keeps_its_shape_and_can_be_written_to():
    floats = read_only(np.arange(6, dtype=np.float32).reshape(3, 2))
    ids = read_only(np.arange(6, dtype=np.int32).reshape(3, 2))
    offsets = read_only(np.array([0, 1, 1, 6], np.int64))
    signal = Signal(
        0,
        3,
        target=floats[:, 0],
        token_ids=TokenLogprobs(ids.ravel(), floats.ravel(), offsets),
        samples=Samples(ids, ids, floats),
        hidden={-1: floats, 2: floats},
        full=floats,
    )
    tensors = signal.to_torch()
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "target": [3],
        "token_ids": [6],
        "token_logprobs": [6],
        "offsets": [4],
        "sample_ids": [3, 2],
        "sample_counts": [3, 2],
        "sample_logprobs": [3, 2],
        "hidden.-1": [3, 2],
        "hidden.2": [3, 2],
        "full": [3, 2],
    }
    assert {tensor.dtype for name, tensor in tensors.items() if "ids" in name or name == "offsets"} == {torch.int64}
    tensors["full"].zero_()
    assert signal.full is not None
    assert signal.full[2, 1] == 5


def test_without_torch_the_line_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LimbeckError, match=r"limbeck\[train\]") as caught:
        Signal(0, 1).to_torch()
    assert caught.value.reason is Reason.EXTRA_MISSING
