"""The figures of a finished run: report.json, of which the page shows everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.recipe.resolved import load_yaml
from limbeck.report.evaluation import Evaluation, Part
from limbeck.report.history import History, read_history
from limbeck.report.rows import Rows, rows_of
from limbeck.report.verdict import Verdict, judge


class Report(Part):
    """report.json. Within a version, fields are only ever added."""

    version: Literal[1] = 1
    title: str = Field(description="Name of the run's folder.")
    verdict: Verdict
    evaluation: Evaluation | None = Field(description="Null where nothing was evaluated.")
    rows: Rows | None = Field(None, description="Null where no generator made them.")
    history: History
    run: dict[str, Any] = Field(description="run.json: id, versions, digests.")
    recipe: dict[str, Any] = Field(description="resolved.yaml: every default filled in.")
    recipe_text: str = Field(description="recipe.yaml as written.")


def read_evaluation(run_folder: Path) -> Evaluation | None:
    """evaluation/evaluation.json of a run, None where it is not there (yet)."""
    file = run_folder / "evaluation" / "evaluation.json"
    return Evaluation.model_validate_json(file.read_bytes()) if file.is_file() else None


def read_figures(run_folder: Path) -> Report:
    """Gather the figures of a run from its folder; loads no model. Raises LOG_DAMAGED."""
    evaluation = read_evaluation(run_folder)
    history = read_history(run_folder / "events.jsonl")
    made = next((stage.figures for stage in history.stages if stage.name == "generate" and stage.figures), None)
    return Report(
        title=run_folder.resolve().name,
        verdict=judge(evaluation.models, evaluation.aim) if evaluation else judge({}),
        evaluation=evaluation,
        rows=rows_of(made) if made else None,
        history=history,
        run=json.loads((run_folder / "run.json").read_bytes()),
        recipe=load_yaml((run_folder / "resolved.yaml").read_text("utf-8")),
        recipe_text=(run_folder / "recipe.yaml").read_text("utf-8"),
    )
