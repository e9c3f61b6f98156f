"""The student: layers of the teacher, any causal LM, or a config from scratch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.teachers.folder import check_layers, model_folder, trust_remote_code, weight_files

if TYPE_CHECKING:
    from limbeck.recipe import StudentSpec

# Settings with one entry a block whose names do not say so.
_PER_LAYER = ("attention_types", "block_types")


@dataclass(frozen=True)
class Student:
    """A model to train, and the folder of its tokenizer."""

    model: Any
    tokenizer_folder: Path


def build_student(spec: StudentSpec, teacher_folder: Path | None, *, tokenizer_folder: Path | None = None) -> Student:
    """Build the student of a recipe, in evaluation mode on the CPU; the same numbers at each call.

    `tokenizer_folder`: used for a config from scratch that names none; else the teacher's. Raises MODEL_INVALID.
    """
    if spec.model is not None:
        folder = model_folder(spec.model)
        return Student(_load(folder, spec).eval(), folder)
    if spec.config is not None:
        own = Path(model_folder(spec.tokenizer)) if spec.tokenizer is not None else None
        folder = own or tokenizer_folder or teacher_folder  # type: ignore[assignment]
        if folder is None:
            raise _invalid("a student from scratch needs a tokenizer", "student.tokenizer", "name one")
        return Student(_from_scratch(spec, folder).eval(), folder)
    if teacher_folder is None:
        raise _invalid(
            "there is no teacher to take layers from", "student.from", "name a teacher that is a model folder"
        )
    teacher = _load(teacher_folder, spec)
    model = teacher if spec.layers is None else take_layers(teacher, spec.layers)
    return Student(model.eval(), teacher_folder)


def take_layers(teacher: Any, layers: Sequence[int]) -> Any:
    """A model of the same family with these blocks of `teacher`, in this order; it shares no memory with it.

    The new config brings each block's own settings along (`layer_types` and the like), and the blocks are built
    from it, so that their indices are those of their new places. Raises MODEL_INVALID.
    """
    config = copy.deepcopy(teacher.config)
    text = config.get_text_config()
    count = int(text.num_hidden_layers)
    check_layers(layers, count)
    if getattr(text, "scale_attn_by_inverse_layer_idx", False):
        hint = "take all layers, or another model"
        raise _invalid(
            "this model scales attention by the number of the layer, which would change", "student.layers", hint
        )
    # Lists with one entry a block are its own settings; class attributes alias some of them, so only what is set.
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == count and ("layer" in name or name in _PER_LAYER):
            setattr(text, name, [value[index] for index in layers])
    text.num_hidden_layers = len(layers)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        student = type(teacher)._from_config(
            config, dtype=teacher.dtype, attn_implementation=teacher.config._attn_implementation
        )
    state = _renumbered(teacher.state_dict(), _blocks_of(teacher, count), layers)
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        hint = "this family gives its layers settings by number that a subset does not fit; take other layers, or all"
        detail = str(error).splitlines()[-1].strip()
        raise _invalid(f"the layers do not fit a smaller model: {detail}", "student.layers", hint) from error
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def _blocks_of(model: nn.Module, count: int) -> str:
    """Name of the list of `count` blocks, with a dot after it. Other towers (vision, audio) and experts are not it."""
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    lists = [name for name in lists if not any(tower in name for tower in ("vision", "audio"))]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        hint = "take the whole teacher, or another model"
        raise _invalid(f"its list of {count} layers cannot be told among {outer or 'none'}", "student.layers", hint)
    return f"{outer[0]}."


def _renumbered(state: dict[str, Tensor], blocks: str, layers: Sequence[int]) -> dict[str, Tensor]:
    place = {str(index): str(position) for position, index in enumerate(layers)}
    renumbered = {}
    for name, tensor in state.items():
        if not name.startswith(blocks):
            renumbered[name] = tensor
            continue
        index, rest = name.removeprefix(blocks).split(".", 1)
        if index in place:
            renumbered[f"{blocks}{place[index]}.{rest}"] = tensor
    return renumbered


def _load(folder: Path, spec: StudentSpec) -> Any:
    from transformers import AutoModelForCausalLM

    weight_files(folder)  # safetensors or nothing: no pickle is read
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(spec),
            use_safetensors=True,
            trust_remote_code=trust_remote_code(),
            output_loading_info=True,
            **_attention(spec),
        )
    except Exception as error:  # transformers, huggingface_hub and safetensors each raise their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "give the folder or hub id of a causal language model that transformers knows"
        problem = Problem(f"the model cannot be loaded: {first}", file=str(folder), field="student", hint=hint)
        raise LimbeckError(Reason.MODEL_INVALID, problems=[problem]) from error
    missing = sorted(info["missing_keys"])
    if missing:
        text = f"{len(missing)} weights are not in its files and would be random: {', '.join(missing[:5])}"
        problem = Problem(text, file=str(folder), field="student", hint="give a folder that holds the whole model")
        raise LimbeckError(Reason.MODEL_INVALID, problems=[problem])
    return model


def _from_scratch(spec: StudentSpec, tokenizer_folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        if isinstance(spec.config, str):
            config = AutoConfig.from_pretrained(spec.config, trust_remote_code=trust_remote_code())
        else:
            settings = dict(spec.config or {})
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=trust_remote_code())
            settings.setdefault("vocab_size", len(tokenizer))
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                settings.setdefault(name, getattr(tokenizer, name))
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=_dtype(spec), **_attention(spec))
    except Exception as error:  # whatever a family's config class makes of wrong settings
        first = shorten(str(error), 300, placeholder=" …") or type(error).__name__
        hint = "give a transformers config: a mapping with `model_type`, a config.json or its folder"
        raise _invalid(f"no model can be made of the config: {first}", "student.config", hint) from error
    return model


def _dtype(spec: StudentSpec) -> torch.dtype:
    return torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32


def _attention(spec: StudentSpec) -> dict[str, str]:
    return {} if spec.attention == "auto" else {"attn_implementation": spec.attention}


def _invalid(message: str, field: str, hint: str) -> LimbeckError:
    return LimbeckError(Reason.MODEL_INVALID, problems=[Problem(message, field=field, hint=hint)])
