"""The code of docs/losses.md runs, in order, in one namespace; the conformance class that it shows passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_guides_code_runs() -> None:
    namespace: dict[str, Any] = {"__name__": "guide"}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), namespace)
    suite = namespace["TestTotalVariation"]()
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) >= 8
    for name in tests:
        getattr(suite, name)()


def test_the_guide_names_every_built_in_loss() -> None:
    from limbeck.losses import PLUGINS

    text = GUIDE.read_text(encoding="utf-8")
    assert not [plugin.name for plugin in PLUGINS if f"| `{plugin.name}` | {plugin.kind} |" not in text]
