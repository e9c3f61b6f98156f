"""The teacher of a run between its stages: made once, on one event loop, let go before training needs the memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from limbeck.interfaces import Teacher, TextTeacher

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

T = TypeVar("T")


class TeacherDesk:
    """Keeps the recipe's teacher, and the one event loop on which it is asked."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._teacher: Teacher | TextTeacher | None = None
        self._runner: asyncio.Runner | None = None
        self.checked = False  # whether the self-check has passed with this teacher

    @property
    def teacher(self) -> Teacher:
        """The teacher on token ids; its weights are loaded at the first request."""
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
        """Run a coroutine that talks to the teacher."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(question)

    def release(self) -> None:
        """Let the teacher and its memory go; the next request makes it anew."""
        if self._teacher is not None:
            self.ask(self._teacher.close())
        self._teacher, self.checked = None, False
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
