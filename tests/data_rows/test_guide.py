"""docs/data.md shows rows that are read, and all formats."""

from __future__ import annotations

import re
from pathlib import Path

from limbeck.data import read_rows

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_rows_of_the_guide_are_valid_and_cover_every_format(tmp_path: Path) -> None:
    block = re.search(r"```jsonl\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "rows.jsonl").write_text(block.group(1))
    rows, problems = read_rows([tmp_path / "rows.jsonl"])
    assert problems == []
    assert {row.format for row in rows} == {"completion", "messages", "text", "preference", "prompt"}
