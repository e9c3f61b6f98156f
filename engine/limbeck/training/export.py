"""The student as a folder that transformers loads with no Limbeck installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from limbeck.files import disk_errors, fsync_folder

# What transformers reads for a tokenizer, by any family; copied byte for byte.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "tekken.json",
)  # fmt: skip
TEMPLATES_FOLDER = "additional_chat_templates"


def export_student(model: Any, tokenizer_folder: Path, folder: Path, card: str) -> Path:
    """Write weights (safetensors), config, generation config, the tokenizer's own files and `card` as README.md.

    All or nothing: a former export is replaced when the new one is whole. Returns `folder`. Raises DISK_FULL.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(folder):
        partial.mkdir(parents=True)
        model.generation_config = _generation_config(model, tokenizer_folder)
        model.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, partial / name)
        if (tokenizer_folder / TEMPLATES_FOLDER).is_dir():
            shutil.copytree(tokenizer_folder / TEMPLATES_FOLDER, partial / TEMPLATES_FOLDER)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for file in partial.glob("*.safetensors"):
            shutil.copymode(partial / "README.md", file)  # safetensors gives 0600 whatever the umask says
        if folder.exists():
            former = folder.with_name(f".{folder.name}.former")
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
            partial.rename(folder)
            shutil.rmtree(former)
        else:
            partial.rename(folder)
        fsync_folder(folder.parent)
    return folder


def _generation_config(model: Any, tokenizer_folder: Path) -> Any:
    """The model's own where it says when to stop, else that of the tokenizer's folder; made valid."""
    from transformers import GenerationConfig

    config = model.generation_config
    file = tokenizer_folder / "generation_config.json"
    if (config is None or config.eos_token_id is None) and file.is_file():
        config = GenerationConfig(**json.loads(file.read_text()))
    config = config or GenerationConfig()
    text = model.config.get_text_config()
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(text, name, None))
    if not config.do_sample:  # a leftover of sampling beside greedy search is refused when saved
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            if hasattr(config, name):
                setattr(config, name, None)
    return config
