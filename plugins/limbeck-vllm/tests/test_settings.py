"""Names and values of vLLM's settings in a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.plugins import load_plugins
from limbeck.recipe.teacher import load_teacher
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.model import start_of
from limbeck_vllm.settings import REFUSED, known_settings

ARG_UTILS = """
class EngineArgs:
    model: str = ""
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.9
    compilation_config: CompilationConfig = None
    _private: int = 0

    def create(self): ...

class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
"""


@pytest.fixture
def vllm_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `vllm` that fails when it is imported."""
    package = tmp_path / "packages" / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "engine" / "arg_utils.py").write_text(ARG_UTILS)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    known_settings.cache_clear()
    yield
    known_settings.cache_clear()


def problem_of(folder: Path, text: str) -> tuple[int | None, str]:
    file = folder / "teacher.yaml"
    file.write_text(f"plugin: vllm\nmodel: .\nengine:\n  max_num_seqs: 8\n  {text}\n")
    with pytest.raises(LimbeckError) as caught:
        load_teacher(file, load_plugins())
    assert caught.value.reason is Reason.RECIPE_INVALID
    (problem,) = caught.value.problems
    return problem.line, problem.message


@pytest.mark.usefixtures("vllm_source")
class TestWithVllm:
    def test_names_are_read_without_importing_vllm(self) -> None:
        assert sorted(known_settings()) == [
            "compilation_config",
            "enable_log_requests",
            "enforce_eager",
            "gpu_memory_utilization",
            "max_num_seqs",
            "model",
        ]

    @pytest.mark.parametrize("name", ["max_num_seq", "max-num-seqs", "--max-num-seqs"])
    def test_an_unknown_name_is_told_at_its_line_with_the_nearest(self, tmp_path: Path, name: str) -> None:
        line, message = problem_of(tmp_path, f"{name}: 8")
        assert line == 5
        assert message == f"vLLM's engine has no setting {name}; did you mean max_num_seqs?"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("enforce_eager: 1", "enforce_eager must be true or false, not 1"),
            ("gpu_memory_utilization: most", "gpu_memory_utilization must be a number, not 'most'"),
            (
                "distributed_executor_backend: some.module.Executor",
                "distributed_executor_backend must be one of vLLM's own (mp, ray, uni, …): 'some.module.Executor' "
                "would run code that a recipe names",
            ),
            ("max_model_len: -1", "max_model_len must be a whole number of at least 2, not -1"),
        ],
    )
    def test_a_value_of_the_wrong_kind_is_told(self, tmp_path: Path, text: str, message: str) -> None:
        known_settings().update(max_model_len="int", distributed_executor_backend="Any")
        assert problem_of(tmp_path, text)[1] == message

    def test_what_vllm_takes_is_taken(self) -> None:
        engine = {"max_num_seqs": 8, "gpu_memory_utilization": 1, "compilation_config": {"mode": 3}}
        assert VllmConfig(model=".", engine=engine).engine == engine


@pytest.mark.parametrize(("engine", "tokens"), [({}, 512), ({"max_num_seqs": 700}, 700)])
def test_a_step_on_a_cpu_is_short_and_holds_a_token_of_each_sequence(engine: dict[str, int], tokens: int) -> None:
    start = start_of(VllmConfig(model=".", engine={"max_model_len": 4096, **engine}), Path())
    assert start.defaults_on_cpu["max_num_batched_tokens"] == tokens


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_teacher_decides_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    line, message = problem_of(tmp_path, f"{name}: x")
    assert line == 5
    assert message == f"{name} cannot be set here: {REFUSED[name]}"


@pytest.mark.vllm
def test_every_refused_name_is_one_of_vllms() -> None:
    known_settings.cache_clear()
    assert REFUSED.keys() <= known_settings().keys()
    assert {"tensor_parallel_size", "quantization", "max_model_len", "max_num_seqs"} <= known_settings().keys()
