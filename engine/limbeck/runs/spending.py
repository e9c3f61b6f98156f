"""rows/usage.json: what a teacher that is asked with text was asked and cost for these rows, over all attempts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from limbeck.files import write_json
from limbeck.interfaces import TextTeacher
from limbeck.report.spending import figures_of, spending_text
from limbeck.runs.stage import PROGRESS_SECONDS, Run
from limbeck.v1.event_pb2 import Metrics

USAGE = "rows/usage.json"


class Spending:
    """Adds what a teacher counts to what earlier attempts counted; tells of it in events, about once a second."""

    def __init__(self, run: Run, teacher: TextTeacher) -> None:
        self._run, self._teacher = run, teacher
        self._file = run.path / USAGE
        before: dict[str, Any] = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        self._before: dict[str, float] = before.get("usage", {})
        self._at_first = dict(teacher.usage())
        self._told: dict[str, float] = {}

    @property
    def figures(self) -> dict[str, float]:
        """All that was counted, under the names of events and reports."""
        return figures_of(self._usage(), self._teacher.info().currency)

    @property
    def text(self) -> str:
        """All that was counted, for people."""
        return spending_text(self.figures) or "nothing"

    def tell(self) -> None:
        """Write it down and say it, where it has changed. Raises DISK_FULL."""
        usage = self._usage()
        if usage == self._told:
            return
        self._told = usage
        info = self._teacher.info()
        write_json(self._file, {"teacher": info.name, "model": info.model, "currency": info.currency, "usage": usage})
        self._run.log.emit(Metrics(values=self.figures))

    async def watch(self, work: asyncio.Task[Any]) -> None:
        """Tell again and again, and cancel `work` where a signal came: an answer may be long in coming."""
        while self._run.stop() is None:
            await asyncio.sleep(PROGRESS_SECONDS)
            self.tell()
        work.cancel()

    def _usage(self) -> dict[str, float]:
        fresh = {name: value - self._at_first.get(name, 0) for name, value in self._teacher.usage().items()}
        names = dict.fromkeys([*self._before, *fresh])
        return {name: self._before.get(name, 0) + fresh.get(name, 0) for name in names}
