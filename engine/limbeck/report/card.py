"""The model card of an exported student: README.md beside its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from limbeck.recipe.resolved import load_yaml
from limbeck.report.columns import columns
from limbeck.report.evaluation import Evaluation, Speaker
from limbeck.report.figures import read_evaluation

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ORDER: dict[Speaker, str] = {
    "teacher": "teacher",
    "untrained": "student before training",
    "twin": "twin, trained without signals",
    "student": "this student",
}


def model_card(run_folder: Path) -> str:
    """A model card in Markdown, with its figures where the evaluation is done. Reads the run's folder only.

    It names the teacher by hub id or by its folder's last name; the recipe is quoted as it was written.
    """
    run = json.loads((run_folder / "run.json").read_bytes())
    recipe: dict[str, Any] = load_yaml((run_folder / "resolved.yaml").read_text("utf-8")) or {}
    teacher = recipe.get("teacher") or {}
    source = str(teacher.get("model") or teacher.get("plugin") or "")
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [distillation, limbeck]"]
    student = recipe.get("student") or {}
    base = str(student.get("model") or ("" if student.get("config") else source))
    if _HUB_ID.fullmatch(base):
        head += [f"base_model: {json.dumps(base)}", "base_model_relation: finetune"]
    lines = [*head, "---", "", f"# {_plain(run_folder.resolve().name)}", "", _origin(source, recipe, run)]
    evaluation = read_evaluation(run_folder)
    if evaluation is not None:
        lines += ["", *_table(evaluation)]
    lines += ["", *_HOW, "", "## Recipe", "", *_fenced((run_folder / "recipe.yaml").read_text("utf-8"))]
    if source:
        lines += ["", f"The terms of the teacher ({_plain(_last(source))}) may hold for this model too."]
    return "\n".join(lines) + "\n"


_HOW = [
    "## Use",
    "",
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'folder = "."  # this folder',
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
    "model = AutoModelForCausalLM.from_pretrained(folder)",
    "```",
]


def _origin(source: str, recipe: dict[str, Any], run: dict[str, Any]) -> str:
    losses = recipe.get("losses") or []
    names = [str(loss.get("plugin", loss.get("name", "?"))) for loss in losses if isinstance(loss, dict)]
    by = f" from {_plain(_last(source))}" if source else ""
    how = f", by {', '.join(f'`{_plain(name)}`' for name in names)}" if names else ""
    return f"Distilled{by}{how}, with Limbeck {run.get('limbeck_version', '')} (run `{run.get('run_id', '')}`)."


def _table(evaluation: Evaluation) -> list[str]:
    held, shown = evaluation.holdout, columns(evaluation.models.values())
    lines = [
        "## Figures",
        "",
        f"On {held.rows:,} held-out rows, {held.tokens:,} trained tokens, weighted by tokens.",
        "",
        f"| Model | {' | '.join(column.title for column in shown)} |",
        f"|---|{'---:|' * len(shown)}",
    ]
    for name, label in _ORDER.items():
        model = evaluation.models.get(name)
        if model is not None:
            cells = [label, *(column.form(column.value(model)) for column in shown)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _fenced(text: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}yaml", text.rstrip("\n"), fence]


def _last(source: str) -> str:
    return source if _HUB_ID.fullmatch(source) else Path(source).name


def _plain(text: str) -> str:
    """Text in which Markdown and HTML see no mark of theirs."""
    return re.sub(r"([\\`*_\[\]<>&#|])", r"\\\1", text) if not re.fullmatch(r"[\w./ -]*", text) else text
