"""The verdict of a run in one sentence: was the distillation worth it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from limbeck.report.evaluation import ModelFigures, Part, Speaker
from limbeck.report.numbers import percent, short

Outcome = Literal["better", "worse", "mixed", "unknown"]
RIVALS: dict[Speaker, str] = {"twin": "its twin trained without signals", "untrained": "the untrained student"}


class Comparison(Part):
    """The student against one rival. `better` is a lower held-out KL *and* a higher top-1 agreement."""

    outcome: Outcome
    forward_kl_change: float | None = Field(description="Student's KL over the rival's, less 1: −0.3 is 30 % lower.")
    top1_agreement_change: float | None = Field(description="Student's top-1 agreement less the rival's.")


class Verdict(Part):
    """Does the student beat its twin and the untrained student, and by how much."""

    text: str
    outcome: Outcome = Field(description="`better` or `worse` where all comparisons are, else `mixed` or `unknown`.")
    against: dict[Speaker, Comparison]


def judge(models: Mapping[Speaker, ModelFigures]) -> Verdict:
    """Compare the student with each rival that was evaluated."""
    student = models.get("student", ModelFigures())
    rivals = {name: models[name] for name in RIVALS if name in models}
    against = {name: _compare(student, rival) for name, rival in rivals.items()}
    text = _sentence(student, rivals, against) if "teacher" in models or not rivals else _alone(student, rivals)
    return Verdict(text=text, outcome=_overall(against), against=against)


def _overall(against: Mapping[Speaker, Comparison]) -> Outcome:
    outcomes = {comparison.outcome for comparison in against.values()}
    if not outcomes or "unknown" in outcomes:
        return "unknown"
    return outcomes.pop() if len(outcomes) == 1 else "mixed"


def _compare(student: ModelFigures, rival: ModelFigures) -> Comparison:
    kl = _finite(student.forward_kl, rival.forward_kl)
    top1 = _finite(student.top1_agreement, rival.top1_agreement)
    if kl is None or top1 is None:
        outcome: Outcome = "unknown"
    elif kl[0] < kl[1] and top1[0] > top1[1]:
        outcome = "better"
    elif kl[0] >= kl[1] and top1[0] <= top1[1]:
        outcome = "worse"
    else:
        outcome = "mixed"
    return Comparison(
        outcome=outcome,
        forward_kl_change=kl[0] / kl[1] - 1 if kl and kl[1] else None,
        top1_agreement_change=top1[0] - top1[1] if top1 else None,
    )


def _finite(*values: float | None) -> tuple[float, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (known[0], known[1]) if len(known) == 2 else None


def _alone(student: ModelFigures, rivals: Mapping[Speaker, ModelFigures]) -> str:
    figures = ", ".join(f"{short(rival.perplexity)} ({name})" for name, rival in rivals.items())
    return (
        "There is no teacher's signal to judge by: the student's held-out perplexity is "
        f"{short(student.perplexity)} against {figures}."
    )


def _sentence(
    student: ModelFigures, rivals: Mapping[Speaker, ModelFigures], against: Mapping[Speaker, Comparison]
) -> str:
    overall = _overall(against)
    if overall == "unknown":
        return "Held-out figures of the student or of its rivals are missing or not finite: there is no verdict."
    outcomes = {comparison.outcome for comparison in against.values()}
    if len(outcomes) == 1:
        verb = {"better": "beats", "worse": "does not beat", "mixed": "is neither better nor worse than"}[overall]
        join = " or " if overall == "worse" else " and "
        start = f"The student {verb} {join.join(RIVALS[name] for name in rivals)}"
    else:
        verbs = {"better": "beats", "worse": "does not beat", "mixed": "is in part better than"}
        start = "The student " + " but ".join(f"{verbs[against[name].outcome]} {RIVALS[name]}" for name in rivals)
    kl = ", ".join(f"{short(rival.forward_kl)} ({_change(against[name])}, {name})" for name, rival in rivals.items())
    top1 = ", ".join(f"{percent(rival.top1_agreement)} ({name})" for name, rival in rivals.items())
    return (
        f"{start}: its held-out KL to the teacher is {short(student.forward_kl)} against {kl}, and its likeliest next "
        f"token is the teacher's in {percent(student.top1_agreement)} of cases against {top1}."
    )


def _change(comparison: Comparison) -> str:
    change = comparison.forward_kl_change
    if change is None:
        return "no ratio"
    return f"{abs(change) * 100:.0f}\u00a0% {'lower' if change < 0 else 'higher'}"
