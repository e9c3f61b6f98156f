"""docs/runs.md names what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from limbeck.runs import preflight
from limbeck.runs.events import KINDS
from limbeck.v1.event_pb2 import RunState

ROOT = Path(__file__).parent.parent.parent


def test_every_warning_of_the_code_is_in_the_guide_and_no_other() -> None:
    engine = ROOT / "engine" / "limbeck"
    files = [*sorted((engine / "runs").glob("*.py")), engine / "steering.py"]
    code = "".join(path.read_text() for path in files)
    said = set(re.findall(r'warn\(\s*"([A-Z_]+)"', code)) | set(re.findall(r'Warning\(reason="([A-Z_]+)"', code))
    table = (ROOT / "docs" / "runs.md").read_text().split("Warnings have fixed names:")[1].split("##")[0]
    assert set(re.findall(r"`([A-Z_]{6,})`", table)) == said


def test_every_kind_of_event_is_in_the_guide_and_no_other() -> None:
    table = (ROOT / "docs" / "runs.md").read_text().split("| event | says |\n|---|---|\n")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()]
    assert sorted(re.findall(r"`(\w+)`", "".join(cells))) == sorted(KINDS.values())


def test_every_state_that_a_process_says_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "runs.md").read_text().split("\nStates are")[1].split("\n\n")[0]
    states = {name.removeprefix("RUN_STATE_").lower() for name in RunState.keys()} - {"unspecified"}  # noqa: SIM118
    assert states <= set(re.findall(r"`(\w+)`", text))


def test_every_stage_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)[:7] == list(preflight._names())
