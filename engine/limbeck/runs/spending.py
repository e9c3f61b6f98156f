"""usage.json: what a teacher that is asked with text was asked and cost in this run, over all attempts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.files import write_json
from limbeck.interfaces import TextTeacher
from limbeck.report.spending import EXPECTED, figures_of, spending_text
from limbeck.runs.events import EventLog
from limbeck.v1.event_pb2 import Metrics


class Spending:
    """Adds what a teacher counts to what earlier attempts counted, and tells of it.

    `tokens`: of the answers that are on disk, see :attr:`limbeck.teachers.answers.Answers.tokens`; it grows. Those that
    an attempt kept after it wrote its count for the last time, before it was killed, are counted by these.
    """

    def __init__(self, log: EventLog, teacher: TextTeacher, file: Path, tokens: Sequence[tuple[int, int]] = ()) -> None:
        self._log, self._teacher, self._file, self._tokens = log, teacher, file, tokens
        before: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        self._before = _with_uncounted(before.get("usage", {}), tokens[before.get("answers", 0) :], teacher)
        self._at_first, self._known_at_first = dict(teacher.usage()), len(tokens)
        self._told: dict[str, float] = {}
        self._told_at = time.monotonic()

    @property
    def figures(self) -> dict[str, float]:
        """All that was counted, under the names of events and reports."""
        return figures_of(self._all(), self._teacher.info().currency)

    @property
    def text(self) -> str:
        """All that was counted, for people."""
        return spending_text(self.figures) or "nothing"

    def silent_for(self) -> float:
        """Seconds since it was last told."""
        return time.monotonic() - self._told_at

    def tell(self, left: int | None) -> None:
        """Write it down and say it, where it has changed. `left`: prompts to come, None where unknown.

        Raises DISK_FULL.
        """
        counted = len(self._tokens)  # first: an answer that comes meanwhile is in the usage already
        usage, info = self._all(), self._teacher.info()
        values = figures_of(usage, info.currency)
        known = self._known_at_first  # calls under way are no answers yet, so it is answers that are counted
        answer = _mean(self._fresh(), counted - known) or _mean(self._before, known)
        if left and answer is not None:
            values[EXPECTED + info.currency] = usage["cost"] + left * answer
        self._told_at = time.monotonic()
        if values == self._told:
            return
        self._told = values
        told = {"teacher": info.name, "model": info.model, "currency": info.currency}
        write_json(self._file, {**told, "usage": usage, "answers": counted})
        self._log.emit(Metrics(values=values))

    def _fresh(self) -> dict[str, float]:
        return {name: value - self._at_first.get(name, 0) for name, value in self._teacher.usage().items()}

    def _all(self) -> dict[str, float]:
        fresh = self._fresh()
        names = dict.fromkeys([*self._before, *fresh])
        return {name: self._before.get(name, 0) + fresh.get(name, 0) for name in names}


def _with_uncounted(
    usage: Mapping[str, float], answers: Sequence[tuple[int, int]], teacher: TextTeacher
) -> dict[str, float]:
    """The usage with a call for each answer whose tokens, read and written, it does not count yet."""
    if not answers:
        return dict(usage)
    read, written = (sum(counts) for counts in zip(*answers, strict=True))
    more: dict[str, float] = {"calls": len(answers), "prompt_tokens": read, "completion_tokens": written}
    if (price := teacher.info().price) is not None:
        more["cost"] = (price[0] * read + price[1] * written) / 1e6
    return {name: usage.get(name, 0) + more.get(name, 0) for name in dict.fromkeys([*usage, *more])}


def _mean(usage: Mapping[str, float], answers: int) -> float | None:
    """What one of so many answers cost on average; None where that is not known."""
    return usage["cost"] / answers if "cost" in usage and answers > 0 else None
