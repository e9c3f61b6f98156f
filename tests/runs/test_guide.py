"""docs/runs.md names what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from limbeck.runs import preflight

ROOT = Path(__file__).parent.parent.parent


def test_every_warning_of_the_code_is_in_the_guide_and_no_other() -> None:
    code = "".join(path.read_text() for path in sorted((ROOT / "engine" / "limbeck" / "runs").glob("*.py")))
    said = set(re.findall(r'warn\(\s*"([A-Z_]+)"', code)) | set(re.findall(r'Warning\(reason="([A-Z_]+)"', code))
    table = (ROOT / "docs" / "runs.md").read_text().split("Warnings have fixed names:")[1].split("##")[0]
    assert set(re.findall(r"`([A-Z_]{6,})`", table)) == said


def test_every_stage_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)[:7] == list(preflight._names())
