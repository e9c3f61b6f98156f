"""The plugin without vLLM."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import TeacherPlugin
from limbeck.plugins import load_plugins
from limbeck_vllm.config import VllmConfig


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_error_says_what_to_install() -> None:
    plugin = load_plugins().get("teacher", "vllm")
    assert isinstance(plugin, TeacherPlugin)
    with pytest.raises(LimbeckError) as caught:
        plugin.factory(VllmConfig(model="."))
    assert caught.value.reason is Reason.EXTRA_MISSING
    assert 'pip install "limbeck-vllm[gpu]"' in str(caught.value)


def test_discovery_and_loading_a_config_import_nothing_heavy() -> None:
    code = (
        "import sys; from limbeck.plugins import load_plugins; plugin = load_plugins().get('teacher', 'vllm');"
        "plugin.config.model_validate({'model': '.', 'engine': {'max_num_seqs': 8}});"
        "print(sorted({'torch', 'transformers', 'vllm', 'openai', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
