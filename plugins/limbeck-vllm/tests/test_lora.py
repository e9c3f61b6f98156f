"""A LoRA adapter on the model, with the real engine, against the same sum of weights in transformers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import Prompt, Sampling, ScoreItem, Want
from limbeck.teachers import TransformersConfig
from limbeck.testing.teachers import CODE_STEP, ask, completions, scores
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.model import info_of, start_of

RANK, ALPHA = 4, 16


def adapter_folder(folder: Path, model: Path) -> Path:
    """An adapter of the query projections in PEFT's form, and the model with it added, in `folder`/merged."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, layer in enumerate(whole.model.layers):
        weight = layer.self_attn.q_proj.weight
        a = torch.randn(RANK, weight.shape[1], generator=generator) * 0.1
        b = torch.randn(weight.shape[0], RANK, generator=generator) * 0.1
        name = f"base_model.model.model.layers.{number}.self_attn.q_proj"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        weight.data += ALPHA / RANK * (b @ a)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    whole.save_pretrained(folder / "merged")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "merged" / file).write_bytes((model / file).read_bytes())
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return adapter_folder(tmp_path_factory.mktemp("adapters") / "adapter", tiny_folder)


def test_its_files_are_part_of_the_digest_and_its_rank_is_set(adapter: Path, tiny_folder: Path) -> None:
    plain = VllmConfig(model=str(tiny_folder))
    adapted = VllmConfig(model=str(tiny_folder), lora=str(adapter))
    assert info_of(plain, tiny_folder).weights_digest != info_of(adapted, tiny_folder).weights_digest
    arguments = start_of(adapted, tiny_folder).arguments
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 1, 8)
    assert "enable_lora" not in start_of(plain, tiny_folder).arguments


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_no_adapter_is_told(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    for file in {"adapter_config.json", "adapter_model.safetensors"} - {name}:
        (tmp_path / file).write_text("{}")
    with pytest.raises(LimbeckError) as caught:
        info_of(VllmConfig(model=str(tiny_folder), lora=str(tmp_path)), tiny_folder)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert f"no {name}" in str(caught.value)


@pytest.mark.vllm
def test_scores_and_texts_are_those_of_the_sum_of_the_weights(adapter: Path, tiny_folder: Path) -> None:
    from limbeck.teachers.transformers import TransformersTeacher
    from limbeck_vllm.teacher import VllmTeacher

    engine = {"kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 4}
    teacher = VllmTeacher(VllmConfig(model=str(tiny_folder), dtype="float32", lora=str(adapter), engine=engine))
    merged = TransformersTeacher(TransformersConfig(model=str(adapter / "merged"), device="cpu"))
    plain = TransformersTeacher(TransformersConfig(model=str(tiny_folder), device="cpu"))
    ids = np.random.default_rng(0).integers(3, 261, 60).astype(np.int32)
    item, want = ScoreItem(0, ids, 0, 59), Want(top_k=5, target=True)
    found, expected, without = (ask(scores(one, [item], want))[0] for one in (teacher, merged, plain))
    assert found.target is not None
    assert expected.target is not None
    assert without.target is not None
    np.testing.assert_allclose(found.target, expected.target, atol=1e-3)
    assert np.abs(without.target - expected.target).max() > 0.05  # the adapter matters
    assert found.top_k is not None
    assert expected.top_k is not None
    np.testing.assert_allclose(found.top_k.at(1.0)[1], expected.top_k.at(1.0)[1], atol=2 * CODE_STEP)
    texts = [ask(completions(one, [Prompt(1, ids)], Sampling(max_new_tokens=12)))[1] for one in (teacher, merged)]
    assert texts[0].ids.tolist() == texts[1].ids.tolist()
    asyncio.run(teacher.close())
