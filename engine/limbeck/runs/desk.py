"""The teacher of a run between its stages: made once, on one event loop, let go before training needs the memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from limbeck.interfaces import StartingTeacher, Teacher, TextTeacher

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

T = TypeVar("T")
STOP_SECONDS = 0.1  # how often a start that lasts looks whether the run is to stop


class TeacherDesk:
    """Keeps the recipe's teacher, and the one event loop on which it is asked.

    A teacher with a start of its own is started before the first question: `told` hears what it is doing, and "" once
    it answers; `check_stop`, called meanwhile, raises what ends the wait.
    """

    def __init__(
        self,
        recipe: Recipe,
        told: Callable[[str], object] = lambda phase: None,
        check_stop: Callable[[], object] = lambda: None,
    ) -> None:
        self._recipe = recipe
        self._told, self._check_stop = told, check_stop
        self._started = False
        self._teacher: Teacher | TextTeacher | None = None
        self._runner: asyncio.Runner | None = None
        self.checked = False  # whether the self-check has passed with this teacher

    @property
    def teacher(self) -> Teacher:
        """The teacher on token ids; its weights are loaded at the first question."""
        made = self._made()
        assert not isinstance(made, TextTeacher), "no stage asks one that answers with text for more"
        return made

    @property
    def text_teacher(self) -> TextTeacher:
        """The teacher that is asked with text."""
        return cast(TextTeacher, self._made())

    def _made(self) -> Teacher | TextTeacher:
        if self._teacher is None:
            assert self._recipe.teacher is not None, "no stage asks for a teacher that the recipe does not name"
            self._teacher = self._recipe.teacher.make()
        assert self._teacher is not None
        return self._teacher

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that talks to the teacher. Raises what the teacher's start raises, too."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            if self._teacher is not None and not self._started:
                self._runner.run(self._start(self._teacher))
        except BaseException:
            question.close()
            raise
        return self._runner.run(question)

    async def _start(self, teacher: Teacher | TextTeacher) -> None:
        if isinstance(teacher, StartingTeacher):
            start = asyncio.ensure_future(teacher.start(self._told))
            try:
                while not (await asyncio.wait({start}, timeout=STOP_SECONDS))[0]:
                    self._check_stop()
                start.result()
            finally:
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
            self._told("")
        self._started = True

    def release(self) -> None:
        """Let the teacher and its memory go; the next request makes it anew."""
        if self._teacher is not None:
            self._started = True  # or never to be
            self.ask(self._teacher.close())
        self._teacher, self.checked, self._started = None, False, False
        gc.collect()  # models hold cycles, and the next stage needs the memory now
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> TeacherDesk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
