"""The loss inside the student's own forward.

A loss that reads the head's weight must run where the weight is whole and its hooks fire: inside the forward of the
wrapped model. So the model's `forward` is replaced on the instance, before PEFT, DDP or FSDP wraps it, and the training
loop calls the wrapped model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from limbeck.functional.batch import SignalBatch
from limbeck.functional.head import Head, backbone
from limbeck.functional.loss import head_loss
from limbeck.functional.projection import CHUNK_BYTES
from limbeck.functional.terms import Term, Values

LOSSES = "limbeck_losses"  # the submodule of loss-owned parameters
_STATE = "_limbeck_head"


@dataclass
class HeadOutput(ModelOutput):  # type: ignore[misc]
    """What the model gives for a batch: the fields of :class:`LossOutput`; `logits` never exist."""

    loss: Tensor | None = None
    sums: dict[str, Tensor] | None = None
    diagnostics: dict[str, Tensor] | None = None
    not_finite: dict[str, Tensor] | None = None


@dataclass
class _Installed:
    terms: tuple[Term, ...]
    teacher_head: Head | None
    chunk_bytes: int
    previous: Any  # a forward that was on the instance already


def install_head(
    model: nn.Module, terms: Sequence[Term], *, teacher_head: Head | None = None, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Let ``model(input_ids=…, attention_mask=…, batch=…, values=…, denominators=…)`` return a :class:`HeadOutput`.

    Without `batch` it behaves as before. Parameters of the losses become the submodule `limbeck_losses`: optimizer and
    checkpoint see them. `teacher_head`: for a teacher that gives its last hidden states. Call it before the model is
    wrapped; :func:`remove_head` undoes it. Raises MODEL_INVALID where the model's head cannot be used.
    """
    if hasattr(model, _STATE):
        remove_head(model)
    Head.of(model)
    backbone(model)
    owned = {term.name: term.loss for term in terms if isinstance(term.loss, nn.Module)}
    parameter = next(model.parameters())
    losses = nn.ModuleDict({_module_name(name): loss.to(parameter.device) for name, loss in owned.items()})
    if any(True for _ in losses.parameters()):
        model.add_module(LOSSES, losses)
    setattr(model, _STATE, _Installed(tuple(terms), teacher_head, chunk_bytes, model.__dict__.get("forward")))
    model.forward = MethodType(_forward, model)


def _module_name(name: str) -> str:
    """A submodule's name: without a dot, and none that torch has given away, such as `items`."""
    return f"loss_{name.replace('.', ':')}"


def remove_head(model: nn.Module) -> None:
    """Give the model its own forward back and drop the losses' parameters, as before an export."""
    if not hasattr(model, _STATE):
        return
    previous = getattr(model, _STATE).previous
    model.__dict__.pop("forward", None)
    if previous is not None:
        model.forward = previous
    if hasattr(model, LOSSES):
        delattr(model, LOSSES)
    delattr(model, _STATE)


def _forward(
    self: nn.Module,
    *args: Any,
    batch: SignalBatch | None = None,
    values: Mapping[str, Values] | None = None,
    denominators: Mapping[str, float] | None = None,
    **kwargs: Any,
) -> Any:
    installed: _Installed = getattr(self, _STATE)
    if batch is None:
        original = installed.previous or MethodType(type(self).forward, self)
        return original(*args, **kwargs)
    assert values is not None, "a batch comes with the values of its terms"
    for unused in ("labels", "num_items_in_batch", "return_dict"):
        kwargs.pop(unused, None)
    layers = {layer for term in installed.terms if term.kind == "feature" for layer in term.needs.student_layers}
    if layers - {-1}:
        kwargs["output_hidden_states"] = True
    outputs = backbone(self)(*args, **kwargs, use_cache=False)
    batch = batch.to(outputs.last_hidden_state.device)
    features = {layer: batch.select(_layer(outputs, layer)) for layer in sorted(layers)}
    result = head_loss(
        batch.select(outputs.last_hidden_state),
        Head.of(self),
        batch,
        installed.terms,
        values,
        denominators,
        features=features,
        teacher_head=installed.teacher_head,
        chunk_bytes=installed.chunk_bytes,
    )
    return HeadOutput(result.loss, dict(result.sums), dict(result.diagnostics), dict(result.not_finite))


def _layer(outputs: Any, layer: int) -> Tensor:
    """Layer of a backbone's outputs, the last one after the final norm. See :class:`limbeck.interfaces.Needs`."""
    if layer == -1 or layer == len(outputs.hidden_states) - 1:
        return torch.as_tensor(outputs.last_hidden_state)
    return torch.as_tensor(outputs.hidden_states[layer])
