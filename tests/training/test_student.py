"""Students: layers of a teacher, a model folder, a config from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, Reason
from limbeck.recipe.schema import StudentSpec
from limbeck.testing.tiny import tiny_config, tiny_model, tiny_model_folder
from limbeck.training import build_student
from limbeck.training.student import take_layers

IDS = torch.arange(3, 23)[None]
QWEN = {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}


def spec(**fields: Any) -> StudentSpec:
    return StudentSpec.model_validate(fields)


def qwen(layers: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        **QWEN,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def mixtral(layers: int) -> Any:
    """As many experts as layers: both are lists of the same length."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mixtral", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=layers, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def teacher_of(family: str) -> Any:
    if family == "mixtral":
        return mixtral(4)
    return qwen(4) if family == "qwen2" else tiny_model(family, 64, layers=4, seed=1)


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(input_ids=IDS, use_cache=False).logits


def cut_by_hand(teacher: Any, layers: list[int]) -> Any:
    """The teacher's own logits when only some of its blocks are run: nothing is built anew."""
    from torch import nn

    base = teacher.base_model
    name = "h" if hasattr(base, "h") else "layers"
    blocks = getattr(base, name)
    types = getattr(base.config, "layer_types", None)
    setattr(base, name, nn.ModuleList(blocks[i] for i in layers))
    base.config.num_hidden_layers = len(layers)
    if types is not None:
        base.config.layer_types = [types[i] for i in layers]
    return logits(teacher)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "gpt2", "qwen2", "mixtral"])
@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [1, 2], [0, 3], [3]])
def test_layers_of_a_teacher_compute_what_they_did_there(family: str, layers: list[int]) -> None:
    teacher = teacher_of(family)
    student = take_layers(teacher, layers).eval()
    assert torch.equal(logits(student), cut_by_hand(teacher, layers))


@pytest.mark.parametrize("family", ["gemma3", "qwen2"])
def test_layers_bring_their_own_settings_and_get_their_new_index(family: str) -> None:
    teacher = teacher_of(family)
    types = list(teacher.config.layer_types)
    assert len(set(types)) == 2
    student = take_layers(teacher, [1, 2, 3])
    assert student.config.num_hidden_layers == 3
    assert student.config.layer_types == types[1:]
    assert [block.self_attn.layer_idx for block in student.base_model.layers] == [0, 1, 2]
    # A wrong index would show here: generation keeps a cache by it.
    student.eval().generate(IDS, max_new_tokens=4, do_sample=False)
    assert teacher.config.layer_types == types


def test_a_student_shares_no_memory_with_its_teacher() -> None:
    teacher = tiny_model("llama", 64, layers=3)
    student = take_layers(teacher, [0, 2])
    before = logits(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(teacher), before)
    assert student.lm_head.weight is student.model.embed_tokens.weight  # tied as the teacher's


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 4, 9], "no layer 4, 9; it has 4: 0 to 3"),
        ([0, 2, 2], "layer 2 is named more than once"),
        ([-1], "no layer -1"),
        ([], "no layer is named"),
    ],
)
def test_wrong_layers_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(LimbeckError, match=message) as caught:
        take_layers(tiny_model("llama", 64, layers=4), layers)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert caught.value.problems[0].field == "student.layers"


def test_attention_scaled_by_the_layers_number_is_refused() -> None:
    with pytest.raises(LimbeckError, match="scales attention by the number of the layer"):
        take_layers(tiny_model("gpt2", 64, layers=2, scale_attn_by_inverse_layer_idx=True), [1])


def test_the_whole_teacher_and_a_part_of_it(tiny_teacher: Path) -> None:
    whole = build_student(spec(**{"from": "teacher"}), tiny_teacher)
    part = build_student(spec(**{"from": "teacher", "layers": [1, 3], "attention": "eager"}), tiny_teacher)
    assert (whole.model.config.num_hidden_layers, part.model.config.num_hidden_layers) == (4, 2)
    assert whole.tokenizer_folder == part.tokenizer_folder == tiny_teacher
    assert part.model.config._attn_implementation == "eager"
    again = build_student(spec(**{"from": "teacher", "layers": [1, 3]}), tiny_teacher)
    assert all(torch.equal(a, b) for a, b in zip(part.model.parameters(), again.model.parameters(), strict=True))


def test_a_model_folder_brings_its_own_tokenizer(tiny_student: Path, tiny_teacher: Path) -> None:
    student = build_student(spec(model=str(tiny_student), dtype="bfloat16"), tiny_teacher)
    assert student.tokenizer_folder == tiny_student
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.bfloat16}


def test_a_config_from_scratch_follows_from_its_seed_alone(tiny_teacher: Path, data: Path) -> None:
    settings = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 2}  # fmt: skip
    before = torch.get_rng_state()
    first = build_student(spec(config=settings, seed=5), tiny_teacher)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    second = build_student(spec(config=settings, seed=5), tiny_teacher)
    third = build_student(spec(config=settings, seed=6, tokenizer=str(data / "tok_b")), tiny_teacher)
    weights = [student.model.lm_head.weight for student in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert weights[2].shape != weights[0].shape or not torch.equal(weights[0], weights[2])
    assert first.tokenizer_folder == tiny_teacher
    assert third.tokenizer_folder == data / "tok_b"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    assert first.model.config.vocab_size == len(tokenizer)
    assert first.model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("as_file", [True, False])
def test_a_config_may_be_a_file_or_its_folder(tmp_path: Path, tiny_teacher: Path, as_file: bool) -> None:
    tiny_config("gemma3", 64).save_pretrained(tmp_path)
    path = tmp_path / "config.json" if as_file else tmp_path
    student = build_student(spec(config=str(path)), tiny_teacher)
    assert student.model.config.model_type == "gemma3_text"


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "lama"},
        {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 0},
        {"model_type": "t5"},
        {"model_type": "llama", "hidden_size": "big"},
    ],
)
def test_a_config_of_no_causal_model_is_refused(settings: dict[str, Any], tiny_teacher: Path) -> None:
    with pytest.raises(LimbeckError, match="no model can be made of the config") as caught:
        build_student(spec(config=settings), tiny_teacher)
    assert caught.value.problems[0].field == "student.config"


def test_folders_that_are_no_whole_model_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(LimbeckError, match=r"holds no \*.safetensors"):
        build_student(spec(model=str(tmp_path)), None)
    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(tmp_path / "part", data / "tok_a")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LimbeckError, match="1 weights are not in its files and would be random"):
        build_student(spec(model=str(folder)), None)
    (folder / "config.json").write_text("{")
    with pytest.raises(LimbeckError, match="the model cannot be loaded"):
        build_student(spec(model=str(folder)), None)


def test_a_student_from_no_teacher_is_refused() -> None:
    with pytest.raises(LimbeckError, match="no teacher to take layers from"):
        build_student(spec(**{"from": "teacher"}), None)
