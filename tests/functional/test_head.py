"""Reading a model's head: families, and heads that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, Reason
from limbeck.functional import Head
from limbeck.functional.head import backbone
from limbeck.testing.tiny import FAMILIES, tiny_model

IDS = torch.arange(3, 35).reshape(2, 16)


def family(name: str, **more: Any) -> nn.Module:
    """A family of tiny.py, or one that transforms its logits in a way of its own."""
    if name in FAMILIES:
        return tiny_model(name, **more)  # type: ignore[no-any-return]
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": 261, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **more)).eval()
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_gives_the_models_own_logits(name: str, tied: bool) -> None:
    model = family(name, tied=tied)
    head = Head.verify(model, IDS)
    assert (head.weight is model.get_input_embeddings().weight) == tied  # type: ignore[operator]
    assert head.soft_cap == (5.0 if name == "gemma2" else None)
    states = backbone(model)(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(head.logits(states), model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "scale"),
    [
        ("granite", {"logits_scaling": 8.0}, 1 / 8),
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("phi", {}, 1.0),  # its head has a bias
    ],
)
def test_scales_and_biases_of_other_families(name: str, options: dict[str, Any], scale: float) -> None:
    model = family(name, **options)
    if name == "phi":
        nn.init.normal_(model.lm_head.bias)  # type: ignore[arg-type]
    head = Head.verify(model, IDS)
    assert head.scale == pytest.approx(scale)
    assert (head.bias is not None) == (name == "phi")


def test_an_unknown_transform_is_caught() -> None:
    model = tiny_model("llama")
    original = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out

    model.forward = shifted
    with pytest.raises(LimbeckError, match="differ from the model's own") as caught:
        Head.verify(model, IDS)
    assert caught.value.reason == Reason.SELF_CHECK_FAILED


def test_verify_leaves_the_mode_as_it_was() -> None:
    model = tiny_model("llama").train()
    Head.verify(model, IDS)
    assert model.training


class _Adapter(nn.Module):
    """As PEFT wraps a linear layer: `.weight` is the frozen base's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Linear(32, 4, bias=False), nn.Linear(4, 261, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.base_layer(x) + self.lora_B(self.lora_A(x)))


class _Quantised(nn.Linear):
    """As 4-bit and 8-bit layers are: a subclass of nn.Linear whose forward unpacks."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.round())


@pytest.mark.parametrize("kind", ["adapter", "quantised", "replaced", "patched"])
def test_a_head_whose_weight_is_not_all_of_it_is_refused(kind: str) -> None:
    model = tiny_model("llama", tied=False)
    base = model.lm_head
    if kind == "patched":
        base.forward = lambda x: nn.functional.linear(x, base.weight) + 1
    else:
        model.lm_head = {
            "adapter": lambda: _Adapter(base),
            "quantised": lambda: _Quantised(32, 261, bias=False),
            "replaced": lambda: nn.Sequential(base),
        }[kind]()
    with pytest.raises(LimbeckError, match="output head") as caught:
        Head.of(model)
    assert caught.value.reason == Reason.MODEL_INVALID
    assert caught.value.problems[0].hint


def test_a_model_without_a_backbone_is_refused() -> None:
    with pytest.raises(LimbeckError, match="backbone"):
        backbone(nn.Linear(2, 2))
