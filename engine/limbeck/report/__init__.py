"""Figures of a finished run, as HTML and JSON."""

from limbeck.report.card import model_card
from limbeck.report.evaluation import Evaluation, Holdout, ModelFigures, Sample
from limbeck.report.figures import Report, read_figures
from limbeck.report.page import write_report

__all__ = [
    "Evaluation",
    "Holdout",
    "ModelFigures",
    "Report",
    "Sample",
    "model_card",
    "read_figures",
    "write_report",
]
