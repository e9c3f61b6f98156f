"""Many questions at once, their answers as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Answers(Generic[T]):
    """A stream for :func:`limbeck.client.sync.from_any_loop`; it asks nothing before its first answer is wanted.

    At most `workers` questions are open, and as many answers wait to be taken. The first error ends all.
    """

    def __init__(self, questions: Sequence[Callable[[], Coroutine[Any, Any, T]]], workers: int) -> None:
        self._questions = iter(questions)
        self._left = len(questions)
        self._workers = min(workers, len(questions))
        self._found: asyncio.Queue[tuple[T] | Exception] = asyncio.Queue(max(self._workers, 1))
        self._tasks: list[asyncio.Task[None]] | None = None

    async def next(self) -> list[T] | None:
        """The answers that are there, at least one; None behind the last."""
        if self._left == 0:
            return None
        if self._tasks is None:
            self._tasks = [asyncio.ensure_future(self._work()) for _ in range(self._workers)]
        found = [await self._found.get()]
        while not self._found.empty():
            found.append(self._found.get_nowait())
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        self._left -= len(found)
        return [answer[0] for answer in found if not isinstance(answer, Exception)]

    async def close(self) -> None:
        """End what is under way. A second call does nothing."""
        tasks, self._tasks, self._left = self._tasks or [], None, 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        for question in self._questions:
            try:
                answer: tuple[T] | Exception = (await question(),)
            except Exception as error:
                answer = error
            await self._found.put(answer)
