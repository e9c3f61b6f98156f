"""Stage report: report/ and the student's model card with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.files import write_atomic
from limbeck.runs.contents import Contents
from limbeck.runs.stage import Figures, Run


class Report:
    """Writes the page and its JSON from what the other stages left; loads no model."""

    name, version = "report", 1
    outputs: tuple[str, ...] = ("report",)
    work: tuple[str, ...] = ()
    after: tuple[str, ...] = ("generate", "prepare", "label", "train", "twin", "evaluate")

    def inputs(self, contents: Contents) -> Mapping[str, Any]:
        return {"recipe": contents.recipe.text}

    def run(self, run: Run) -> Figures:
        from limbeck.report import model_card, write_report

        run.desk.release()
        with run.progress("pages", 1) as advance:
            write_report(run.path)
            write_atomic(run.path / "student" / "README.md", model_card(run.path))
            advance(1)
        return {}
