"""The meaningful words of what vLLM prints, as its release 0.32 prints them."""

from __future__ import annotations

import pytest

from limbeck_vllm.words import lacks_memory, phase_of, reason_of

LOG = """\
(EngineCore pid=9) INFO 11-25 19:07:44 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m'
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900] WorkerProc failed to start.
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900] Traceback (most recent call last):
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900]   File "weight_utils.py", line 1, in load
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900]     raise KeyError(name)
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900] KeyError: 'first'
(Worker pid=11) ERROR 11-25 19:07:50 [multiproc_executor.py:900] ValueError: Following weights were not initialized: x
(EngineCore pid=9) ERROR 11-25 19:07:51 [core.py:1500] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-25 19:07:51 [core.py:1500] Exception: WorkerProc initialization failed due to an exception
(MainProcess pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""".splitlines()
ABOVE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def test_the_root_of_a_failure_is_told_not_those_that_point_at_it() -> None:
    assert reason_of(LOG, ABOVE) == "Following weights were not initialized: x"


def test_colours_do_not_hide_it() -> None:
    line = (
        "\x1b[0;36m(Worker pid=11)\x1b[0;0m ERROR 11-25 19:07:50 [a.py:9] torch.OutOfMemoryError: CUDA out of memory."
    )
    assert reason_of([line], ABOVE) == "CUDA out of memory."


def test_what_the_engine_raised_itself_is_told_without_pydantics_frame() -> None:
    raised = (
        "ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Model architectures ['X'] are not supported"
        " [type=value_error, input_value=ArgsKwargs((), {'a': 1}), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error"
    )
    assert reason_of(LOG[:1], raised) == "Model architectures ['X'] are not supported"


def test_an_engine_that_ended_without_a_word_is_told_too() -> None:
    words = reason_of(LOG[:1])
    assert "want of memory" in words
    assert lacks_memory(words)


@pytest.mark.parametrize(
    "words", ["CUDA out of memory.", "Free memory on device cuda:0 (1/79 GiB) is less than desired", "Cannot allocate"]
)
def test_a_lack_of_memory_is_known(words: str) -> None:
    assert lacks_memory(words)
    assert not lacks_memory("Model architectures ['X'] are not supported")


def test_phases() -> None:
    assert phase_of("(Worker pid=1) INFO [x.py:1] Starting to load model /tmp/m...") == "loading the weights"
    assert phase_of("(Worker pid=1) INFO [x.py:1] Loading weights took 3.28 seconds") == "warming up"
    assert phase_of(LOG[0]) is None
