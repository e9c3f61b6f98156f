"""The verdict of a run in one sentence: was the distillation worth it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from limbeck.report.evaluation import Aim, ModelFigures, Part, Speaker
from limbeck.report.numbers import percent, short

Outcome = Literal["better", "worse", "mixed", "unknown"]
RIVALS: dict[Speaker, str] = {"twin": "its twin trained without signals", "untrained": "the untrained student"}
NEAR_ZERO = 1e-3  # nats: below it a KL is mostly rounding, and a ratio to it says nothing


class Comparison(Part):
    """The student against one rival. What is `better` depends on the run's aim (`evaluation.aim`).

    For `teacher` it is a lower held-out KL *and* a higher top-1 agreement; for `text` a lower held-out perplexity; for
    `preferences` a larger margin *and* no lower accuracy.
    """

    outcome: Outcome
    forward_kl_change: float | None = Field(
        description="Student's KL over the rival's, less 1: −0.3 is 30 % lower. Null where the rival's is near 0."
    )
    top1_agreement_change: float | None = Field(description="Student's top-1 agreement less the rival's.")
    cross_entropy_change: float | None = Field(None, description="Student's cross-entropy less the rival's, in nats.")
    preference_accuracy_change: float | None = Field(None, description="Student's accuracy less the rival's.")
    preference_margin_change: float | None = Field(None, description="Student's margin less the rival's, in nats.")


class Verdict(Part):
    """Does the student beat its twin and the untrained student, and by how much."""

    text: str
    outcome: Outcome = Field(description="`better` or `worse` where all comparisons are, else `mixed` or `unknown`.")
    against: dict[Speaker, Comparison]


Rivals = Mapping[Speaker, ModelFigures]


def judge(models: Mapping[Speaker, ModelFigures], aim: Aim = "teacher") -> Verdict:
    """Compare the student with each rival that was evaluated, by what it was trained for."""
    student = models.get("student", ModelFigures())
    rivals = {name: models[name] for name in RIVALS if name in models}
    against = {name: _compare(student, rival, aim) for name, rival in rivals.items()}
    if "teacher" not in models and rivals and aim == "teacher" and student.forward_kl is None:
        text = _alone(student, rivals)
    elif _overall(against) == "unknown":
        text = "Held-out figures of the student or of its rivals are missing or not finite: there is no verdict."
    else:
        text = f"{_outcome(rivals, against, aim)}: {_REASONS[aim](student, rivals)}"
    return Verdict(text=text, outcome=_overall(against), against=against)


def _overall(against: Mapping[Speaker, Comparison]) -> Outcome:
    outcomes = {comparison.outcome for comparison in against.values()}
    if not outcomes or "unknown" in outcomes:
        return "unknown"
    return outcomes.pop() if len(outcomes) == 1 else "mixed"


def _compare(student: ModelFigures, rival: ModelFigures, aim: Aim) -> Comparison:
    kl = _finite(student.forward_kl, rival.forward_kl)
    top1 = _finite(student.top1_agreement, rival.top1_agreement)
    accuracy = _finite(student.preference_accuracy, rival.preference_accuracy)
    margin = _finite(student.preference_margin, rival.preference_margin)
    outcome: Outcome = "unknown"
    entropy = _finite(student.cross_entropy, rival.cross_entropy)
    if aim == "teacher" and kl and top1:
        outcome = _both(kl[0] < kl[1], top1[0] > top1[1])
    elif aim == "text" and entropy:
        outcome = "mixed" if entropy[0] == entropy[1] else "better" if entropy[0] < entropy[1] else "worse"
    elif aim == "preferences" and accuracy and margin:
        larger = margin[0] > margin[1]
        outcome = _both(larger, larger if accuracy[0] == accuracy[1] else accuracy[0] > accuracy[1])
    return Comparison(
        outcome=outcome,
        forward_kl_change=kl[0] / kl[1] - 1 if kl and kl[1] >= NEAR_ZERO else None,
        top1_agreement_change=top1[0] - top1[1] if top1 else None,
        cross_entropy_change=entropy[0] - entropy[1] if entropy else None,
        preference_accuracy_change=accuracy[0] - accuracy[1] if accuracy else None,
        preference_margin_change=margin[0] - margin[1] if margin else None,
    )


def _both(first: bool, second: bool) -> Outcome:
    return "mixed" if first != second else "better" if first else "worse"


def _finite(*values: float | None) -> tuple[float, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (known[0], known[1]) if len(known) == 2 else None


def _alone(student: ModelFigures, rivals: Rivals) -> str:
    return (
        "There is no teacher's signal to judge by: the student's held-out perplexity is "
        f"{short(student.perplexity)} against {_listed(rivals, lambda rival: short(rival.perplexity))}."
    )


def _outcome(rivals: Rivals, against: Mapping[Speaker, Comparison], aim: Aim) -> str:
    in_part = "is better than {} in one measure but not in the other"
    clauses: dict[Outcome, str] = {
        "better": "beats {}",
        "worse": "does not beat {}",
        "mixed": "is neither better nor worse than {}" if aim == "text" else in_part,
    }
    outcomes = {comparison.outcome for comparison in against.values()}
    if len(outcomes) == 1:
        (outcome,) = outcomes
        join = " or " if outcome == "worse" else " and "
        return f"The student {clauses[outcome].format(join.join(RIVALS[name] for name in rivals))}"
    join = ", and " if "mixed" in outcomes and aim != "text" else " but "
    return "The student " + join.join(clauses[against[name].outcome].format(RIVALS[name]) for name in rivals)


def _by_teacher(student: ModelFigures, rivals: Rivals) -> str:
    kl = ", ".join(
        f"{short(rival.forward_kl)} ({_change(student.forward_kl, rival.forward_kl)}, {name})"
        for name, rival in rivals.items()
    )
    text = (
        f"its held-out KL to the teacher is {short(student.forward_kl)} against {kl}, and its likeliest next token is "
        f"the teacher's in {percent(student.top1_agreement)} of cases against "
        f"{_listed(rivals, lambda rival: percent(rival.top1_agreement))}."
    )
    if student.preference_accuracy is None:
        return text
    return f"{text} Of the held-out preference pairs, {_favours(student, rivals)}."


def _by_text(student: ModelFigures, rivals: Rivals) -> str:
    return (
        f"on held-out answers that the teacher wrote, its perplexity is {short(student.perplexity)} against "
        f"{_listed(rivals, lambda rival: short(rival.perplexity))}."
    )


def _by_preferences(student: ModelFigures, rivals: Rivals) -> str:
    text = f"against the teacher as reference, of the held-out preference pairs {_favours(student, rivals)}."
    if student.forward_kl is None:
        return text
    return f"{text} Its KL to the teacher, from which it is meant to move away, is {short(student.forward_kl)}."


_REASONS: dict[Aim, Callable[[ModelFigures, Rivals], str]] = {
    "teacher": _by_teacher,
    "text": _by_text,
    "preferences": _by_preferences,
}


def _favours(student: ModelFigures, rivals: Rivals) -> str:
    return (
        f"it favours the chosen text in {percent(student.preference_accuracy)} against "
        f"{_listed(rivals, lambda rival: percent(rival.preference_accuracy))}, by a mean margin of "
        f"{short(student.preference_margin)} nats against "
        f"{_listed(rivals, lambda rival: short(rival.preference_margin))}"
    )


def _listed(rivals: Rivals, form: Callable[[ModelFigures], str]) -> str:
    return ", ".join(f"{form(rival)} ({name})" for name, rival in rivals.items())


def _change(student: float | None, rival: float | None) -> str:
    """How a KL compares with another; no percentage where it would be absurd."""
    both = _finite(student, rival)
    if both is None:
        return "no ratio"
    mine, other = both
    side = "lower" if mine < other else "higher"
    if other < NEAR_ZERO:
        return f"{short(abs(mine - other), 2)} nats {side}"
    change = mine / other - 1
    if change > 9:
        return "more than 10 times as high"
    return f"{'over 99' if change < -0.99 else f'{abs(change) * 100:.0f}'}\u00a0% {side}"
