"""A loaded causal language model: hidden states, and logits of chosen hidden states by the model's own head."""

from __future__ import annotations

import inspect
from collections.abc import Container
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.head import OutputHead, head_transform
from limbeck.teachers.config import TransformersConfig
from limbeck.teachers.folder import text_config, trust_remote_code, weight_files

CHUNK_BYTES = 64 * 2**20  # logits of one chunk in fp32; a handful of buffers of this size live at once


class LoadedModel:
    """The weights in memory. Not for two threads at once.

    `body` runs everything but the head; `logits` gives any hidden states to the head. So logits of positions that
    nobody asked for are never formed.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self._name = name
        self._base = model.base_model
        self._accepts = inspect.signature(self._base.forward).parameters
        self._outputs: Any = None
        self.device: torch.device = model.device
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.chunk_rows = max(1, CHUNK_BYTES // (4 * self.vocab_size))
        self._check_head()

    @classmethod
    def load(cls, folder: Path, config: TransformersConfig) -> LoadedModel:
        """Read the weights of `folder`. Raises MODEL_INVALID."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        name = str(folder)
        weight_files(folder)
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # progress is told by whoever runs the teacher
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=config.dtype,
                attn_implementation=_attention(folder, config),
                use_safetensors=True,
                trust_remote_code=trust_remote_code(),
                local_files_only=True,
                output_loading_info=True,
            )
            model = model.to(_device(config.device))
        except LimbeckError:
            raise
        except Exception as error:  # transformers, safetensors and torch raise many kinds
            _invalid(name, f"the model cannot be loaded: {_first_line(error)}", "see that it loads with transformers")
        finally:
            if bars:
                logging.enable_progress_bar()
        missing = sorted(report["missing_keys"])
        if missing:  # transformers would fill them with random numbers
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            _invalid(name, f"the files lack weights: {shown}", "save the whole model with save_pretrained")
        if model.base_model is model or model.get_output_embeddings() is None:
            _invalid(name, f"{type(model).__name__} is not a body with an output head", "use a causal language model")
        return cls(model, name)

    def body(
        self, ids: Tensor, mask: Tensor, *, positions: Tensor | None = None, cache: Any = None, **more: bool
    ) -> Any:
        """The base model's output for `ids` [b, t] with `mask` [b, t + what the cache holds].

        `more`: `use_cache`, `output_hidden_states`. `last_hidden_state` [b, t, d] is after the final norm.
        """
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False} | more
        if positions is not None and "position_ids" in self._accepts:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs[cache_name(self._accepts)] = cache
        outputs = self._base(**inputs)
        self._outputs = type(outputs)(last_hidden_state=outputs.last_hidden_state[:1, :1])
        return outputs

    def cache(self, outputs: Any) -> Any:
        """The key-value cache that :meth:`body` gave with ``use_cache=True``."""
        return getattr(outputs, cache_name(self._accepts))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits fp32 [n, v] of `hidden` [n, d]: what the model's own forward makes of them.

        The model runs with its body replaced by these states, so that each family's scales and caps are its own.
        """
        outputs = self._outputs
        outputs.last_hidden_state = hidden[None]
        before = self._base.__dict__.get("forward")
        self._base.forward = lambda *_, **__: outputs
        try:
            result = self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        finally:
            del self._base.forward
            if before is not None:
                self._base.forward = before
        logits: Tensor = result.logits[0].float()
        return logits

    @torch.inference_mode()
    def output_head(self) -> OutputHead:
        """The head's numbers in f32, not to be written to. Raises MODEL_INVALID where logits are not made so."""
        module = self._model.get_output_embeddings()
        weight: Tensor = module.weight.float().cpu()
        bias: Tensor | None = None if module.bias is None else module.bias.float().cpu()
        scale, soft_cap = head_transform(self._model.config.get_text_config())
        states = self.body(*self._some_ids()).last_hidden_state[0]
        theirs = self.logits(states).cpu()
        ours = scale * torch.nn.functional.linear(states.float().cpu(), weight, bias)
        if soft_cap is not None:
            ours = soft_cap * torch.tanh(ours / soft_cap)
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
        if not error <= torch.finfo(states.dtype).eps ** 0.5:  # 3e-4 in fp32, 0.09 in bf16
            message = (
                f"the logits of {type(self._model).__name__} are not those of its head's weight, scale and soft-cap"
            )
            _invalid(self._name, message, "use top_k or full instead of hidden_states, and report the family")
        return OutputHead(weight.numpy(), None if bias is None else bias.numpy(), scale, soft_cap)

    def _some_ids(self) -> tuple[Tensor, Tensor]:
        """Ids and mask [1, 4]."""
        ids = torch.arange(1, 5, device=self.device)[None] % self.vocab_size
        return ids, torch.ones_like(ids)

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Refuse a model whose logits are not those of its head over its body's last hidden states."""
        ids, mask = self._some_ids()
        ours = self.logits(self.body(ids, mask).last_hidden_state[0])
        theirs = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        good = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4, equal_nan=True)
        if not good:
            _invalid(
                self._name, f"the head of {type(self._model).__name__} cannot be called alone", "use another model"
            )


def cache_name(accepted: Container[str]) -> str:
    """What a forward that takes these parameters calls its key-value cache, and so its output: newer ones, `cache`."""
    return "cache" if "cache" in accepted else "past_key_values"


def _attention(folder: Path, config: TransformersConfig) -> str | None:
    """The attention kernel to ask for, None for the model's default. `sdpa` leaves a soft-cap out, silently."""
    capped = getattr(text_config(folder), "attn_logit_softcapping", None) is not None
    if capped and config.attention == "sdpa":
        _invalid(str(folder), "`sdpa` leaves out the soft-cap of this model's attention", "use `auto` or `eager`")
    if config.attention == "auto":
        return "eager" if capped else None
    return config.attention


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _invalid(model: str, message: str, hint: str) -> NoReturn:
    raise LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, file=model, hint=hint)])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
