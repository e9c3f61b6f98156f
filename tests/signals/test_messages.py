"""Errors on their way."""

from __future__ import annotations

import pytest

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.messages import MOST_TEXT, error_message


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (None, ""),
        ("/srv/rows.jsonl", "/srv/rows.jsonl"),
        (f"/srv/{'x' * 150}/{'y' * 150}/rows.jsonl", "…/rows.jsonl"),
        (f"/srv/{'x' * 150}/{'y' * 255}", f"…/{'y' * 255}"),
    ],
)
def test_a_file_keeps_its_name_however_long_its_path_is(file: str | None, told: str) -> None:
    problem = Problem("m" * 400, file=file, line=3)
    (sent,) = error_message(LimbeckError(Reason.DATA_INVALID, problems=[problem])).problems
    assert (sent.file, sent.line, len(sent.message)) == (told, 3, MOST_TEXT)
