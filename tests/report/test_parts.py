"""Charts, numbers, verdict and model card."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from limbeck.report import ModelFigures, model_card
from limbeck.report.bars import bar_chart
from limbeck.report.chart import COLUMNS, Curve, downsample, line_chart
from limbeck.report.numbers import count, duration, percent, short, size
from limbeck.report.verdict import judge


def test_downsampling_keeps_every_spike() -> None:
    draw = random.Random(0)
    points = [(float(i), draw.random()) for i in range(100_000)]
    points[51_234] = (51_234.0, 99.0)
    points[777] = (777.0, -99.0)
    kept = downsample(points)
    assert len(kept) <= 4 * COLUMNS
    assert (51_234.0, 99.0) in kept
    assert (777.0, -99.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_a_curve_breaks_at_a_value_that_is_not_finite_and_marks_it() -> None:
    svg = line_chart("a", "t", "u", [Curve("c", "student", [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])])
    path = re.search(r'class="line student" d="([^"]*)"', svg)
    assert path
    assert path[1].count("M") == 2
    assert svg.count('class="lost student"') == 2
    assert "2 values not finite" in svg


@pytest.mark.parametrize(
    "points", [[], [(0, 0.0)], [(5, math.nan)], [(1, 1e-300), (2, 1e300)], [(1, 3.0), (2, 3.0)], [(1, -2.0), (2, -1.0)]]
)
def test_any_curve_can_be_drawn_inside_the_chart(points: list[tuple[float, float]]) -> None:
    svg = line_chart("a", "<t>", "u&v", [Curve("<c>", "student", points)])
    assert "<t>" not in svg
    assert "<c>" not in svg
    for y in re.findall(r'c[xy]="(-?[\d.]+)"', svg):
        assert 0 <= float(y) <= 480


def test_bars_are_to_scale_and_a_nan_has_none() -> None:
    svg = bar_chart(
        "b", "t", [("a", "student", 2.0, "2"), ("b", "twin", 1.0, "1"), ("c", "untrained", math.nan, "NaN")]
    )
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)
    assert widths[2] == 0


def test_numbers_read_well() -> None:
    assert [short(v) for v in (None, math.nan, -math.inf, 0.0, 1234.5, 0.00012345, 1e-9)] == [
        "–", "NaN", "−∞", "0", "1,234", "0.000123", "1.00e−09",
    ]  # fmt: skip
    assert (count(268_098_176), size(1 << 30), percent(0.5), duration(3725)) == (
        "268.1 M", "1.0 GiB", "50.0\u00a0%", "1 h 2 min",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def figures(kl: float | None, top1: float | None) -> ModelFigures:
    return ModelFigures(forward_kl=kl, top1_agreement=top1)


@pytest.mark.parametrize(
    ("student", "twin", "outcome", "says"),
    [
        ((1.0, 0.5), (2.0, 0.4), "better", "beats its twin trained without signals and the untrained"),
        ((2.0, 0.4), (1.0, 0.5), "mixed", "does not beat its twin trained without signals but beats the untrained"),
        ((1.0, 0.4), (2.0, 0.5), "mixed", "in one measure but not in the other, and beats the untrained"),
        ((math.nan, 0.4), (2.0, 0.5), "unknown", "no verdict"),
        ((None, None), (2.0, 0.5), "unknown", "no verdict"),
    ],
)
def test_the_verdict_never_flatters(
    student: tuple[float | None, float | None], twin: tuple[float, float], outcome: str, says: str
) -> None:
    models = {"student": figures(*student), "twin": figures(*twin), "untrained": figures(9.0, 0.0)}
    models["teacher"] = figures(0.0, 1.0)
    verdict = judge(models)  # type: ignore[arg-type]
    assert verdict.outcome == outcome
    assert says in verdict.text


@pytest.mark.parametrize(
    ("kl", "rival", "says", "change"),
    [
        (1.0, 2.0, "2.00 (50 % lower, twin)", -0.5),
        (0.4, 1e-7, "1.00e−07 (0.40 nats higher, twin)", None),
        (0.4, 0.0, "0 (0.40 nats higher, twin)", None),
        (5e-4, 9e-4, "0.0009 (0.0004 nats lower, twin)", None),
        (9.0, 0.002, "0.002 (more than 10 times as high, twin)", 4499.0),
        (0.001, 9.0, "9.00 (over 99 % lower, twin)", -0.99988888),
        (2.0, math.inf, "∞ (no ratio, twin)", None),
    ],
)
def test_a_change_against_next_to_nothing_is_no_absurd_percentage(
    kl: float, rival: float, says: str, change: float | None
) -> None:
    models = {"teacher": figures(0.0, 1.0), "student": figures(kl, 0.5), "twin": figures(rival, 0.4)}
    verdict = judge(models)  # type: ignore[arg-type]
    assert verdict.against["twin"].forward_kl_change == pytest.approx(change)
    if math.isfinite(rival):
        assert f"{says}, and its likeliest" in verdict.text


def preferring(accuracy: float | None, margin: float | None, kl: float = 0.0) -> ModelFigures:
    return ModelFigures(forward_kl=kl, top1_agreement=0.9, preference_accuracy=accuracy, preference_margin=margin)


@pytest.mark.parametrize(
    ("student", "outcome"),
    [
        ((0.9, 2.0), "better"),
        ((0.5, 0.1), "better"),  # as often, by more
        ((0.9, -0.1), "mixed"),
        ((0.4, 1.0), "mixed"),
        ((0.4, -1.0), "worse"),
        ((0.5, 0.0), "worse"),
        ((0.9, math.nan), "unknown"),
        ((None, None), "unknown"),
    ],
)
def test_what_is_trained_on_preferences_is_judged_by_them_not_by_its_distance(
    student: tuple[float | None, float | None], outcome: str
) -> None:
    models = {"teacher": preferring(0.5, 0.0), "untrained": preferring(0.5, 0.0), "student": preferring(*student, 3.0)}
    assert judge(models, "preferences").outcome == outcome  # type: ignore[arg-type]
    assert judge(models, "teacher").outcome != "better"  # type: ignore[arg-type]


def test_a_student_of_the_teacher_tells_its_preferences_too() -> None:
    models = {"teacher": preferring(0.5, 0.0), "untrained": preferring(0.25, -1.5, 2.0)}
    models["student"] = preferring(0.75, 2.5, 1.0)
    text = judge(models).text  # type: ignore[arg-type]
    assert text.endswith(
        "Of the held-out preference pairs, it favours the chosen text in 75.0 % against 25.0 % (untrained), by "
        "a mean margin of 2.50 nats against −1.50 (untrained)."
    )


def test_without_a_teacher_the_perplexities_are_told() -> None:
    models = {"student": ModelFigures(perplexity=20.0), "untrained": ModelFigures(perplexity=90.0)}
    verdict = judge(models)  # type: ignore[arg-type]
    assert verdict.outcome == "unknown"
    assert verdict.text.endswith("the student's held-out perplexity is 20.0 against 90.0 (untrained).")


def test_the_card_names_teacher_losses_and_figures(run_folder: Path) -> None:
    card = model_card(run_folder)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert 'base_model: "org/big-teacher"' in card
    assert "`forward_kl`, `cross_entropy`" in card
    assert "| this student | 218.0 M |" in card


def test_the_card_of_a_local_teacher_names_no_path_and_needs_no_evaluation(run_folder: Path) -> None:
    (run_folder / "evaluation" / "evaluation.json").unlink()
    resolved = run_folder / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("org/big-teacher", "'/home/someone/models/big [x]'"))
    card = model_card(run_folder)
    assert "/home/someone" not in card
    assert "base_model" not in card
    assert r"big \[x\]" in card
    assert "## Figures" not in card


def test_a_recipe_with_fences_cannot_leave_its_block(run_folder: Path) -> None:
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "# ````\n# # Not a heading\n")
    assert "`````yaml\n" in model_card(run_folder)


def test_a_figure_that_stays_zero_is_drawn_on_the_axis() -> None:
    svg = line_chart("a", "t", "u", [Curve("c", "student", [(1, 0.0), (2, 0.0)])])
    axis = re.search(r'class="axis" d="M\d+ (\d+)H', svg)
    line = re.search(r'class="line student" d="M[\d.]+ ([\d.]+)', svg)
    assert axis
    assert line
    assert float(line[1]) == float(axis[1])
