"""The report of a run as one HTML page that loads nothing from elsewhere and needs no script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.files import write_atomic
from limbeck.recipe.resolved import dump_yaml
from limbeck.report import numbers
from limbeck.report.bars import bar_chart
from limbeck.report.chart import Curve, line_chart
from limbeck.report.columns import columns
from limbeck.report.evaluation import ModelFigures, Speaker
from limbeck.report.figures import Report, read_figures
from limbeck.report.rows import plain_figures

SPEAKERS: dict[Speaker, str] = {
    "teacher": "Teacher",
    "untrained": "Student before training",
    "twin": "Twin, trained without signals",
    "student": "Student",
}
_LEARNERS: tuple[Speaker, ...] = ("untrained", "twin", "student")
STAGES = {"train": "student", "twin": "twin"}  # stage of the events to class of its curve
_UNITS = {
    "loss": "weighted sum, nats",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens": "tokens",
    "tokens_per_second": "tokens a second",
    "diagnostics.teacher_mass": "probability",
    "diagnostics.student_mass": "probability",
    "diagnostics.top1_agreement": "fraction of tokens",
    "diagnostics.saturated": "log-probabilities",
}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def write_report(run_folder: Path) -> Path:
    """Write report/report.json and report/index.html of a run; returns the page's path.

    Reads the run's folder only and loads no model. Raises LOG_DAMAGED, DISK_FULL.
    """
    report = read_figures(run_folder)
    folder = run_folder / "report"
    write_atomic(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    page = folder / "index.html"
    write_atomic(page, render(report).encode("utf-8", "replace"))
    return page


def render(report: Report) -> str:
    """The page. Everything that comes from the run is escaped: markup in a sample stays text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"visible": visible, "duration": numbers.duration, "figure": _figure, "plain": plain_figures}
    style = Markup((Path(__file__).parent / "page.css").read_text("utf-8"))
    return environment.get_template("page.html").render(
        report=report,
        speakers=SPEAKERS,
        style=style,
        rows=_rows(report),
        columns=columns(report.evaluation.models.values()) if report.evaluation else [],
        bars=_bars(report),
        groups=_chart_groups(report),
        samples=_samples(report),
        total=sum(stage.seconds for stage in report.history.stages),
        resolved=dump_yaml(report.recipe),
    )


def visible(text: str) -> str:
    """Control characters as their pictures (U+2400 …): HTML has no way to hold most of them."""
    return _CONTROLS.sub(lambda found: "\u2421" if found[0] == "\x7f" else chr(0x2400 + ord(found[0])), text)


def _figure(value: float, name: str) -> str:
    if name.endswith("bytes"):
        return numbers.size(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else numbers.short(value, 4)


def _rows(report: Report) -> list[dict[str, Any]]:
    """The comparison table: for each model its cells (text, note, best)."""
    models = report.evaluation.models if report.evaluation else {}
    learners = {name: models[name] for name in _LEARNERS if name in models}
    teacher = models.get("teacher", ModelFigures())
    rows = []
    for name in (name for name in SPEAKERS if name in models):
        cells = []
        for column in columns(models.values()):
            mine, whole = column.value(models[name]), column.value(teacher)
            learns = name in learners
            share = mine / whole if learns and column.better is None and mine is not None and whole else None
            leads = learns and len(learners) > 1 and mine is not None and mine == column.best(learners.values())
            cells.append((column.form(mine), "" if share is None else f"{numbers.short(share, 2)}×", leads))
        rows.append({"name": name, "cells": cells})
    return rows


def _bars(report: Report) -> list[tuple[str, Markup]]:
    """What the student is judged by, and preferences where there are any."""
    if report.evaluation is None:
        return []
    models = report.evaluation.models
    fields = {
        "forward_kl": ("KL(teacher ‖ model), nats a token: lower is better", numbers.short),
        "top1_agreement": ("Likeliest next token is the teacher's: higher is better", numbers.percent),
        "preference_accuracy": ("Chosen text favoured, of the pairs: higher is better", numbers.percent),
        "preference_margin": ("Margin of the chosen text, nats: higher is better", numbers.short),
    }
    if report.evaluation.aim == "preferences":
        fields = {name: value for name, value in fields.items() if name.startswith("preference")}
    charts = []
    for field, (title, form) in fields.items():
        bars = [
            (SPEAKERS[name].split(",")[0], name, value, form(value))
            for name in _LEARNERS
            if name in models and (value := getattr(models[name], field)) is not None
        ]
        if bars:
            charts.append((title, bar_chart(f"bars-{field}", title, bars)))
    return charts


def _chart_groups(report: Report) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Charts by heading: the loss and its terms, the knobs, all the rest."""
    names = sorted({name for stage in STAGES for name in report.history.series.get(stage, {})})
    heads = {
        "Losses": [n for n in names if n == "loss" or n.startswith("losses.")],
        "Knobs": [n for n in names if n.startswith("knobs.")],
    }
    drawn = {name for group in heads.values() for name in group}
    heads["Training"] = [n for n in names if n not in drawn]
    numbered = {name: index for index, name in enumerate(names)}
    return [(head, [_chart(report, n, f"c{numbered[n]}") for n in group]) for head, group in heads.items() if group]


def _chart(report: Report, name: str, ident: str) -> tuple[str, Markup]:
    curves = []
    for stage, css in STAGES.items():
        series = report.history.series.get(stage, {}).get(name)
        if series is not None and (stage, name) != ("twin", "loss"):  # its sum has other terms: not to be compared
            curves.append(Curve(css, css, [(float(s), v) for s, v in zip(series.steps, series.values, strict=True)]))
    unit = "nats a token" if name.startswith("losses.") else _UNITS.get(name, "value")
    title = name.removeprefix("knobs.")
    return title, line_chart(ident, title, unit, curves, stepped=name.startswith("knobs."))


def _samples(report: Report) -> list[dict[str, Any]]:
    samples = report.evaluation.samples if report.evaluation else []
    labels: dict[str, str] = {"reference": "Reference", **{str(name): label for name, label in SPEAKERS.items()}}
    return [
        {
            "prompt": sample.prompt,
            "said": [(who, label, text) for who, label in labels.items() if (text := getattr(sample, who)) is not None],
        }
        for sample in samples
    ]
