"""What a comparison says: figures of each contestant, who is better, how sure that is, and what to beware of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from limbeck.errors import LimbeckError, counted
from limbeck.report.numbers import short
from limbeck.runs.compare import Contest, Entry
from limbeck.runs.contest import ASKED_AT_ONCE, Answer, Outcome
from limbeck.runs.contestants import knows_student
from limbeck.runs.measures import Interval, Ratios, difference, exact_match, interval, ratio, word_f1

Figure = Literal["bits_per_byte", "f1"]
NAMES: dict[Figure, str] = {"bits_per_byte": "bits per byte", "f1": "word F1"}
RULES: dict[Figure | None, str] = {
    "bits_per_byte": "fewest bits per byte of the reference answers, then the lower cost",
    "f1": "highest word F1 of the answers against the references, then the lower cost, then bits per byte",
    None: "fewest answers missing, then the lower cost, then the shorter time",
}
FEW_ROWS = 20  # below it, an interval is a guess


@dataclass(frozen=True)
class Measured:
    """A figure over rows, with its 95 % interval; None where there are fewer than two rows."""

    value: float
    interval: Interval | None
    rows: int


@dataclass(frozen=True)
class Line:
    """The figures of one contestant; None is unknown. `exact`: its likelihood is no mere bound from below.

    `rank` from 1, of teachers that could be ranked. `rejected`: answers that are none, by why. `seconds_…`: from when
    an answer and up to 15 others were asked until it was there. `tokens_per_second`: written, all taken together.
    """

    name: str
    kind: Literal["teacher", "student"]
    plugin: str | None
    picked: bool
    rank: int | None = None
    failed: dict[str, Any] | None = None
    bits_per_byte: Measured | None = None
    nats_per_token: float | None = None
    perplexity: float | None = None
    exact: bool = True
    too_long: int = 0
    f1: Measured | None = None
    exact_match: Measured | None = None
    answers: int = 0
    truncated: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    tokens_read: int | None = None
    tokens_written: int | None = None
    cached: int = 0
    cost: float | None = None
    currency: str | None = None
    seconds_mean: float | None = None
    seconds_p50: float | None = None
    seconds_p95: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Difference:
    """How much better the first is than the second in a figure, on the rows that both have: `value`, above 0 if so.

    `of_first` and `of_second`: the figure itself.
    """

    first: str
    second: str
    figure: Figure
    of_first: float
    of_second: float
    value: float
    interval: Interval | None
    rows: int

    @property
    def certain(self) -> bool:
        """Whether chance does not explain that the first is better."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def text(self) -> str:
        """`0.12 bits per byte (0.08 … 0.15)`."""
        return f"{short(self.value)} {NAMES[self.figure]}{between(self.interval)}"


@dataclass(frozen=True)
class Comparison:
    """All of it. `lines`: teachers by rank, those that failed, then the student."""

    rows: int
    held_out: int
    references: int
    max_new_tokens: int
    asked_at_once: int
    figure: Figure | None
    rule: str
    lines: list[Line]
    differences: list[Difference]
    against_student: list[Difference]
    warnings: list[str]
    verdict: str


def judge(contest: Contest) -> Comparison:
    """Rank the teachers of a contest, compare neighbours, and each with the student."""
    wanted = {place: one.reference for place, one in enumerate(contest.asked) if one.reference is not None}
    rationale = contest.recipe.data.rationale
    sheets = [_Sheet(entry, wanted, None if rationale is None else rationale.tag) for entry in contest.entries]
    teachers = [sheet for sheet in sheets if sheet.kind == "teacher" and sheet.outcome is not None]
    students = [sheet for sheet in sheets if sheet.kind == "student"]
    failed = [sheet for sheet in sheets if sheet.kind == "teacher" and sheet.outcome is None]
    figure = _figure(teachers)
    ranked = sorted(teachers, key=lambda sheet: sheet.key(figure))
    pairs = pairwise(ranked) if figure else ()
    differences = [one for a, b in pairs if (one := _difference(a, b, figure)) is not None]
    own = [one for a in ranked for b in students if (one := _difference(a, b, "bits_per_byte")) is not None]
    lines = [sheet.line(rank) for rank, sheet in enumerate(ranked, 1)]
    return Comparison(
        rows=len(contest.asked),
        held_out=contest.held_out,
        references=len(wanted),
        max_new_tokens=contest.sampling.max_new_tokens,
        asked_at_once=ASKED_AT_ONCE,
        figure=figure,
        rule=RULES[figure],
        lines=[*lines, *(sheet.line(None) for sheet in (*failed, *students))],
        differences=differences,
        against_student=own,
        warnings=[*_doubts(contest, wanted, sheets, figure), *(_worse(one) for one in own if not one.certain)],
        verdict=_verdict(ranked, figure, differences, len(contest.asked)),
    )


class _Sheet:
    """The measured rows of a contestant."""

    def __init__(self, entry: Entry, wanted: dict[int, str], tag: str | None) -> None:
        self.entry, self.outcome = entry, entry.outcome
        self.name, self.kind = entry.contestant.name, entry.contestant.kind
        outcome = entry.outcome or Outcome()
        self.bits = {i: (one.nats / math.log(2), one.bytes) for i, one in outcome.likelihoods.items()}
        answered = {place: answer for place, answer in outcome.answers.items() if place in wanted}
        self.f1 = {place: (_right(word_f1, answer, wanted[place], tag), 1) for place, answer in answered.items()}
        self.same = {place: (_right(exact_match, answer, wanted[place], tag), 1) for place, answer in answered.items()}

    def rows(self, figure: Figure) -> dict[int, tuple[float, int]]:
        """By place, what is summed above and below the line; empty where the figure is not known."""
        if figure == "bits_per_byte":
            return self.bits if self.outcome is not None and self.outcome.exact else {}
        return self.f1

    def key(self, figure: Figure | None) -> tuple[float, ...]:
        """Sorts the best first, by the rule of the figure."""
        line = self.line(None)
        cost, seconds = (math.inf if value is None else value for value in (line.cost, line.seconds_mean))
        if figure is None:
            return (sum(line.rejected.values()), cost, seconds)
        bits, f1 = (_sign(name) * ratio(_array(rows)) if (rows := self.rows(name)) else -math.inf for name in NAMES)
        return (-bits, cost) if figure == "bits_per_byte" else (-f1, cost, -bits)

    def line(self, rank: int | None) -> Line:
        """The figures."""
        one, outcome = self.entry.contestant, self.outcome
        line = partial(Line, one.name, one.kind, one.plugin, one.picked)
        if outcome is None:
            assert self.entry.failed is not None, "there is an outcome, or an error"
            return line(failed=_told(self.entry.failed))
        scored = outcome.likelihoods.values()
        nats, tokens = sum(one.nats for one in scored), sum(one.tokens for one in scored)
        answers = list(outcome.answers.values())
        seconds = [one.seconds for one in answers if math.isfinite(one.seconds)]
        read, written, cost = _spent(outcome)
        return line(
            rank=rank,
            bits_per_byte=_measured(self.bits),
            nats_per_token=nats / tokens if tokens else None,
            perplexity=math.exp(min(nats / tokens, 700.0)) if tokens else None,
            exact=outcome.exact,
            too_long=outcome.too_long,
            f1=_measured(self.f1),
            exact_match=_measured(self.same),
            answers=len(answers),
            truncated=sum(one.cut and one.rejected is None for one in answers),
            rejected=dict(Counter(one.rejected.partition(":")[0] for one in answers if one.rejected is not None)),
            tokens_read=read,
            tokens_written=written,
            cached=int(outcome.usage.get("cached", 0)),
            cost=cost,
            currency=None if cost is None else outcome.currency,
            seconds_mean=float(np.mean(seconds)) if seconds else None,
            seconds_p50=float(np.quantile(seconds, 0.5)) if seconds else None,
            seconds_p95=float(np.quantile(seconds, 0.95)) if seconds else None,
            tokens_per_second=written / outcome.seconds if written and outcome.seconds else None,
        )


def _right(measure: Callable[[str, str], float], answer: Answer, reference: str, tag: str | None) -> float:
    """An answer that was refused, failed or is empty is worth nothing: it gives a student nothing either.

    What stands in the tags of a rationale is no part of the answer.
    """
    from limbeck.data.rationale import without

    if answer.rejected is not None:
        return 0.0
    said, wanted = (answer.text, reference) if tag is None else (without(answer.text, tag), without(reference, tag))
    return measure(said, wanted)


def _spent(outcome: Outcome) -> tuple[int | None, int | None, float | None]:
    """Tokens read and written, and the cost: what a service counted, or all answers where some came from a cache."""
    usage = outcome.usage
    if usage and not usage.get("cached"):
        return int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)), usage.get("cost")
    known = [one for one in outcome.answers.values() if one.read is not None and one.written is not None]
    if not known:
        return None, None, None
    read, written = sum(one.read or 0 for one in known), sum(one.written or 0 for one in known)
    price = outcome.price
    return read, written, None if price is None else (price[0] * read + price[1] * written) / 1e6


def _told(error: LimbeckError) -> dict[str, Any]:
    return {"reason": str(error.reason), "message": error.message, "problems": [str(one) for one in error.problems]}


def _array(rows: dict[int, tuple[float, int]]) -> Ratios:
    return np.array([rows[place] for place in sorted(rows)], dtype=np.float64)


def _measured(rows: dict[int, tuple[float, int]]) -> Measured | None:
    return Measured(ratio(_array(rows)), interval(_array(rows)), len(rows)) if rows else None


def _sign(figure: Figure) -> int:
    """1 where more is better."""
    return -1 if figure == "bits_per_byte" else 1


def _figure(teachers: Sequence[_Sheet]) -> Figure | None:
    """Bits per byte where every teacher tells them, else F1 where there are answers and references."""
    if all(sheet.rows("bits_per_byte") for sheet in teachers):
        return "bits_per_byte"
    return "f1" if any(sheet.rows("f1") for sheet in teachers) else None


def _difference(first: _Sheet, second: _Sheet, figure: Figure | None) -> Difference | None:
    """In this figure, or else in F1 where both have that; None where they have none."""
    for name in dict.fromkeys(one for one in (figure, "f1") if one is not None):
        a, b = first.rows(name), second.rows(name)
        if common := sorted(a.keys() & b.keys()):
            rows = [_array({place: of[place] for place in common}) for of in (a, b)]
            value, middle = difference(*(rows if _sign(name) > 0 else rows[::-1]))
            own, other = map(ratio, rows)
            return Difference(first.name, second.name, name, own, other, value, middle, len(common))
    return None


def between(middle: Interval | None, digits: int = 3) -> str:
    """` (0.08 … 0.15)`, nothing where there is no interval."""
    return "" if middle is None else f" ({short(middle[0], digits)} … {short(middle[1], digits)})"


def _worse(one: Difference) -> str:
    worse = one.interval is not None and one.interval[1] < 0
    text = (
        f"{one.first} {'is worse than' if worse else 'does not beat'} the {one.second}: {short(one.of_first)} against "
    )
    text += f"{short(one.of_second)} {NAMES[one.figure]} on {counted(one.rows, 'rows')}"
    if worse or one.value == 0:
        return text
    how = "better" if one.value > 0 else "worse"
    return f"{text}; it is {how} by {short(abs(one.value))}{_of_size(one)}, which may be chance"


def _of_size(one: Difference) -> str:
    """The interval of a difference that is told without its sign."""
    if one.interval is None or one.value > 0:
        return between(one.interval)
    return between((-one.interval[1], -one.interval[0]))


def _doubts(contest: Contest, wanted: dict[int, str], sheets: Sequence[_Sheet], figure: Figure | None) -> list[str]:
    found = []
    if not wanted:
        found.append("no row has a reference answer")
    if figure is not None and len(contest.asked) < FEW_ROWS:
        doubt = "the intervals are rough" if len(contest.asked) > 1 else "it has no intervals"
        found.append(f"only {counted(len(contest.asked), 'rows')}: {doubt}")
    known = {sheet.name: sheet for sheet in sheets if sheet.outcome is not None}
    mute = [name for name, sheet in known.items() if sheet.kind == "teacher" and not sheet.rows("bits_per_byte")]
    if figure == "f1" and mute and len(mute) < sum(sheet.kind == "teacher" for sheet in known.values()):
        found.append(f"ranked by word F1, since {', '.join(mute)} cannot tell how likely a given text is")
    for name, sheet in known.items():
        assert sheet.outcome is not None
        if sheet.outcome.too_long:
            found.append(f"{name}: {counted(sheet.outcome.too_long, 'rows')} too long to be scored whole")
        if sheet.outcome.usage.get("cached"):
            cached = counted(int(sheet.outcome.usage["cached"]), "answers")
            found.append(f"{name}: {cached} came from its cache: its times are not those of the service")
    if not knows_student(contest.recipe):
        found.append("the student is not compared: what it is made of follows from the teacher that is picked")
    return found


def _verdict(ranked: Sequence[_Sheet], figure: Figure | None, differences: Sequence[Difference], rows: int) -> str:
    best = ranked[0]
    on = f"on {counted(rows, 'rows')}"
    if figure is None:
        first = f"{best.name} comes first {on}, by {RULES[None]}. " if len(ranked) > 1 else ""
        return f"{first}Nothing here tells how good an answer is: that takes rows with reference answers."
    measured = _measured(best.rows(figure))
    worth = "" if measured is None else f"{short(measured.value)} {NAMES[figure]}{between(measured.interval)}"
    if len(ranked) == 1:
        return f"{best.name} is the only teacher that could be compared: {worth} {on}."
    doubtful = [one for one in differences if not one.certain]
    if differences and differences[0].certain:
        text = f"{best.name} is the best of {len(ranked)} teachers {on}: {worth}, {differences[0].text} better than "
        text += f"{differences[0].second}."
    else:
        text = f"{best.name} comes first of {len(ranked)} teachers, {worth}."
    if doubtful:
        one = doubtful[0]
        text += f" {one.first} and {one.second} cannot be told apart {on}: they differ by {one.text}"
        text += "".join(f"; nor can {one.first} and {one.second}" for one in doubtful[1:]) + "."
    return text
