"""The output head of a Hugging Face causal LM: hidden states to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.head import head_transform


@dataclass(frozen=True)
class Head:
    """logits = cap · tanh(scale · (W h + b) / cap), without the tanh where `soft_cap` is None.

    `weight` [v, d] and `bias` [v] are the model's own parameters, tied or not. Read it inside the model's forward,
    each time: under FSDP the parameters are whole only there.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the weight, padding rows included."""
        return int(self.weight.shape[0])

    @property
    def parameters(self) -> list[Tensor]:
        """The weight, and the bias where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers causal LM. Raises MODEL_INVALID where it is not a plain, whole nn.Linear."""
        module = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(module, nn.Linear) or getattr(module.forward, "__func__", None) is not nn.Linear.forward:
            hint = "leave the output head out of the adapter's target modules, and unquantised"
            raise _unusable(f"its output head is a {type(module).__module__}.{type(module).__qualname__}", hint)
        if isinstance(module.weight, DTensor):
            hint = "enter through the wrapped model, and leave the output head unwrapped or in the root's group"
            raise _unusable("its output head is sharded (a DTensor) where the loss reads it", hint)
        config: Any = model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        return cls(module.weight, module.bias, *head_transform(config))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., v] of hidden states [..., d], fp32 or wider. Differentiable, and as large as it looks."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.to(wide(logits.dtype)) * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    @classmethod
    @torch.no_grad()
    def verify(cls, model: nn.Module, input_ids: Tensor) -> Head:
        """The head of `model`, after comparing its logits with the model's own on `input_ids` [b, t].

        Raises SELF_CHECK_FAILED where they differ by more than rounding: a family with a transform unknown here.
        """
        head = cls.of(model)
        was_training = model.training
        model.eval()
        try:
            theirs = model(input_ids=input_ids).logits
            ours = head.logits(backbone(model)(input_ids=input_ids).last_hidden_state)
        finally:
            model.train(was_training)
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        if not error <= torch.finfo(theirs.dtype).eps ** 0.5:  # 3e-4 in fp32, 0.09 in bf16
            hint = "this family transforms its logits in a way that Limbeck does not know; please report it"
            text = (
                f"the logits computed from the last hidden states differ from the model's own by {error:.2g}, relative"
            )
            problem = Problem(text, field=type(model).__name__, hint=hint)
            raise LimbeckError(Reason.SELF_CHECK_FAILED, problems=[problem])
        return head


def backbone(model: nn.Module) -> nn.Module:
    """The part of a causal LM below its head, which gives `last_hidden_state`. Raises MODEL_INVALID for none."""
    base = getattr(model, "base_model", model)
    if base is model or not isinstance(base, nn.Module):
        raise _unusable("it has no backbone below its output head", "use a transformers causal LM")
    return base


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that logits, losses and sums of gradients have: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unusable(message: str, hint: str) -> LimbeckError:
    return LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, hint=hint)])
