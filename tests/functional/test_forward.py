"""The loss inside the model's forward: real tiny models, batches made from sequences and signals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data.sequence import TokenSequence
from limbeck.functional import HeadOutput, SignalBatch, Term, Values, collate, install_head, remove_head
from limbeck.signals import Signal, TopK
from limbeck.testing.tiny import tiny_model

Made = tuple[Term, Values]
K, VOCAB = 6, 261


def sequence(index: int, length: int, trained: list[int], seed: int = 0) -> TokenSequence:
    draw = np.random.default_rng((seed, index))
    mask = np.zeros(length, dtype=bool)
    mask[trained] = True
    offsets = np.stack([np.arange(length), np.arange(length) + 1], 1).astype(np.int32)
    return TokenSequence(
        index, draw.integers(3, VOCAB, length).astype(np.int32), mask, offsets, "rows.jsonl", index + 1
    )


SEQUENCES = [sequence(0, 9, [4, 5, 8]), sequence(1, 6, [2, 3, 4, 5]), sequence(2, 4, [3])]


@torch.no_grad()
def signal(teacher: Any, row: TokenSequence, temperatures: tuple[float, ...] = (1.0, 2.0)) -> Signal:
    """What a teacher says of the rows that a sequence keeps, quantised as it is stored."""
    out = teacher(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None], output_hidden_states=True)
    rows = slice(row.first_row, row.first_row + row.n)
    z = out.logits[0, rows].double()
    logprobs = z.log_softmax(1)
    top = logprobs.topk(K, 1)
    tails = [(z / t).log_softmax(1).scatter(1, top.indices, -torch.inf).logsumexp(1) for t in temperatures]
    answer = TopK.from_logprobs(
        top.indices.numpy(), top.values.numpy(), torch.stack(tails, 1).float().numpy(), temperatures
    )
    target = logprobs.gather(1, torch.from_numpy(row.ids.astype(np.int64))[1:][rows][:, None])[:, 0]
    hidden = {1: out.hidden_states[1][0, rows].numpy(), -1: out.hidden_states[-1][0, rows].numpy()}
    return Signal(row.first_row, row.n, answer, target.float().numpy(), hidden=hidden)


@pytest.fixture(scope="module")
def made_batch() -> tuple[dict[str, Tensor], SignalBatch]:
    teacher = tiny_model("llama", seed=5, scale=3.0)
    return collate(SEQUENCES, [signal(teacher, row) for row in SEQUENCES], (1.0, 2.0), pad_id=0)


@pytest.fixture
def terms(make: Callable[..., Made]) -> tuple[list[Term], dict[str, Values]]:
    made = [make("forward_kl", temperature=2.0, weight=0.8), make("cross_entropy", weight=0.2)]
    return [term for term, _ in made], {term.name: knobs for term, knobs in made}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_full_logits(model: Any, inputs: dict[str, Tensor], batch: SignalBatch) -> Tensor:
    """0.8 · 4 · KL at temperature 2 on the support and tail + 0.2 · cross-entropy, from the model's own logits."""
    z = model(**inputs).logits[batch.batch_n, batch.time_n]
    ids, (log_p, log_t) = batch.answers["top_k"].ids, batch.answers["top_k"].at[2.0]
    log_q = torch.log_softmax(z / 2, 1)
    log_u = log_q.scatter(1, ids, -torch.inf).logsumexp(1)
    kl = (log_p.exp() * (log_p - log_q.gather(1, ids))).sum(1) + log_t.exp() * (log_t - log_u)
    cross = -torch.log_softmax(z, 1).gather(1, batch.labels[:, None])[:, 0]
    return (0.8 * 4 * kl + 0.2 * cross).mean()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_equals_the_loss_from_the_models_logits(
    made_batch: tuple[dict[str, Tensor], SignalBatch], terms: Any, family: str, tied: bool
) -> None:
    inputs, batch = made_batch
    model = tiny_model(family, tied=tied)
    loss = by_full_logits(model, inputs, batch)
    expected = gradients(model, loss)
    install_head(model, terms[0], chunk_bytes=3 * VOCAB * 4)
    out = model(**inputs, batch=batch, values=terms[1])
    assert isinstance(out, HeadOutput)
    torch.testing.assert_close(out.loss, loss.detach(), rtol=1e-5, atol=1e-6)
    found = gradients(model, out.loss)
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    assert out.diagnostics is not None
    assert out.diagnostics["tokens"] == 8


def test_padding_and_prompt_change_nothing(made_batch: Any, terms: Any) -> None:
    """The rows singly, accumulated, are the batch: padding and other rows change neither value nor gradient."""
    inputs, batch = made_batch
    teacher = tiny_model("llama", seed=5, scale=3.0)
    model = tiny_model("gemma3")
    install_head(model, terms[0])
    whole = model(**inputs, batch=batch, values=terms[1])
    expected = gradients(model, whole.loss)
    model.zero_grad()
    total = torch.zeros(())
    for row in SEQUENCES:
        alone, alone_batch = collate([row], [signal(teacher, row)], (2.0,), pad_id=0)
        counts = {"tokens": batch.n, "rows": 3, "pairs": 0}
        part = model(**alone, batch=alone_batch, values=terms[1], denominators=counts)
        part.loss.backward()
        total += part.loss.detach()
    torch.testing.assert_close(total, whole.loss.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_without_a_batch_the_model_is_as_before_and_remove_undoes_all(made_batch: Any, terms: Any) -> None:
    inputs, _ = made_batch
    model = tiny_model("llama")
    before, keys = model(**inputs).logits, set(model.state_dict())
    install_head(model, terms[0])
    assert torch.equal(model(**inputs).logits, before)
    assert model.generate(inputs["input_ids"][:1, :4], max_new_tokens=2, do_sample=False).shape == (1, 6)
    remove_head(model)
    assert "forward" not in vars(model)
    assert torch.equal(model(**inputs).logits, before)
    assert set(model.state_dict()) == keys
    remove_head(model)


def test_a_forward_patched_before_is_kept(made_batch: Any, terms: Any) -> None:
    inputs, _ = made_batch
    model = tiny_model("llama")
    calls = []
    original = model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    patched = model.forward
    install_head(model, terms[0])
    install_head(model, terms[0])
    model(**inputs)
    remove_head(model)
    assert model.forward is patched
    assert calls == [1]


def test_a_copy_trains_itself(made_batch: Any, terms: Any) -> None:
    inputs, batch = made_batch
    model = tiny_model("llama")
    install_head(model, terms[0])
    twin = copy.deepcopy(model)
    twin(**inputs, batch=batch, values=terms[1]).loss.backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_checkpointing_changes_no_gradient(made_batch: Any, terms: Any) -> None:
    inputs, batch = made_batch
    found = []
    for checkpointing in (False, True):
        model = tiny_model("gemma3").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        install_head(model, terms[0])
        found.append(gradients(model, model(**inputs, batch=batch, values=terms[1]).loss))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-6, atol=1e-7)


def test_all_masked_micro_batch_is_a_differentiable_0(made_batch: Any, terms: Any) -> None:
    model = tiny_model("llama")
    install_head(model, terms[0])
    masked = TokenSequence(0, SEQUENCES[0].ids, np.zeros(9, dtype=bool), SEQUENCES[0].offsets, "rows.jsonl", 1)
    inputs, batch = collate([masked], [None], (1.0,), pad_id=0)
    cross = {"cross_entropy": terms[1]["cross_entropy"]}
    install_head(model, terms[0][1:])
    out = model(**inputs, batch=batch, values=cross)
    out.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert out.loss.item() == 0
    assert out.diagnostics["tokens"] == 0
    assert all(p.grad is not None and (p.grad == 0).all() and p.isfinite().all() for p in model.parameters())


def test_a_feature_losss_parameters_are_trained_and_never_exported(
    made_batch: Any, make: Callable[..., Made], tmp_path: Path
) -> None:
    inputs, batch = made_batch
    model = tiny_model("llama", hidden=16)  # half as wide as the teacher
    own = set(model.state_dict())
    feature, values = make("hidden_mse", layers=[[1, 1], [2, -1]], sizes=(16, 32, VOCAB))
    cross, knobs = make("cross_entropy")
    install_head(model, [feature, cross])
    added = {name for name, _ in model.named_parameters() if name.startswith("limbeck_losses.")}
    assert added == {f"limbeck_losses.loss_hidden_mse.projections.{i}.weight" for i in (0, 1)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(8):
        out = model(**inputs, batch=batch, values={"hidden_mse": values, "cross_entropy": knobs})
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.sums["hidden_mse"].item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    remove_head(model)
    assert set(model.state_dict()) == own
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    assert not [name for name in load_file(tmp_path / "model.safetensors") if "limbeck" in name]


@pytest.mark.parametrize("names", [("items", "keys"), ("training", "forward"), ("a.b", "a_b")])
def test_a_loss_may_be_called_as_something_of_torchs_is(
    made_batch: Any, make: Callable[..., Made], names: tuple[str, str]
) -> None:
    inputs, batch = made_batch
    model = tiny_model("llama", hidden=16)
    feature, values = make("hidden_mse", layers=[[1, 1]], sizes=(16, 32, VOCAB))
    other, _ = make("hidden_mse", layers=[[2, -1]], sizes=(16, 32, VOCAB))
    install_head(model, [replace(term, name=name) for term, name in zip((feature, other), names, strict=True)])
    out = model(**inputs, batch=batch, values=dict.fromkeys(names, values))
    assert all(out.sums[name] > 0 for name in names)
    assert sum("projections" in name for name, _ in model.named_parameters()) == 2


def test_hidden_states_are_numbered_as_hugging_face_does(made_batch: Any, make: Callable[..., Made]) -> None:
    """A student that is the teacher has no hidden error at any layer, the last one after the final norm."""
    inputs, batch = made_batch
    model = tiny_model("llama", seed=5, scale=3.0)
    for layers in ([[1, 1]], [[-1, -1]], [[2, -1]], [[1, 1], [-1, -1]]):
        feature, values = make("hidden_mse", layers=layers, sizes=(32, 32, VOCAB))
        install_head(model, [feature])
        out = model(**inputs, batch=batch, values={"hidden_mse": values})
        assert out.loss.item() == pytest.approx(0, abs=1e-9)
        assert not hasattr(model, "limbeck_losses")
