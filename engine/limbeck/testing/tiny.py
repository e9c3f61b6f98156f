"""Tiny real models for tests: random weights, a byte-level tokenizer, built in a second and saved as usual folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "gemma3", "gemma2", "gpt2")


def tiny_config(
    family: str, vocab_size: int, *, layers: int = 2, hidden: int = 32, tied: bool = True, **more: Any
) -> Any:
    """A transformers config of `family` with toy sizes. `more` goes to the config class."""
    from transformers import AutoConfig

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": hidden, "n_layer": layers, "n_head": 2, "n_positions": 512}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": hidden // 2}
        sizes |= {"max_position_embeddings": 512}
    if family == "gemma2":
        sizes |= {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": hidden // 2, "sliding_window": 64}
    if family == "gemma3":
        sizes |= {"query_pre_attn_scalar": hidden // 2, "sliding_window": 64}
        sizes |= {"layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]}
    name = "gemma3_text" if family == "gemma3" else family
    return AutoConfig.for_model(name, **(common | sizes | more))


def tiny_model(family: str = "llama", vocab_size: int = 261, *, seed: int = 0, scale: float = 1.0, **more: Any) -> Any:
    """A causal LM in eval mode with random weights drawn from `seed`; `scale` sharpens its predictions."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, vocab_size, **more), attn_implementation="eager")
        if scale != 1.0:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(scale)
    return model.eval()


def tiny_model_folder(folder: Path, tokenizer: Path, family: str = "llama", **more: Any) -> Path:
    """Save a tiny model with the tokenizer of folder `tokenizer`, as ``from_pretrained`` loads it. Returns `folder`."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    more.setdefault("vocab_size", len(AutoTokenizer.from_pretrained(tokenizer)))
    tiny_model(family, **more).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder
