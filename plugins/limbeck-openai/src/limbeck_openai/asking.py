"""One request of the engine: many prompts, their answers as they come, and when to give up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from limbeck.errors import LimbeckError
from limbeck.interfaces import TextCompletion
from limbeck_openai.answers import Answer
from limbeck_openai.desk import Desk, failing, refused
from limbeck_openai.faults import Fault
from limbeck_openai.gate import Stopped
from limbeck_openai.requests import Request

IN_A_ROW = 3  # failed prompts without an answer between them: the service, not the prompts, is at fault


@dataclass
class _Group:
    """Prompts with one and the same request: it is asked once."""

    request: Request
    items: list[int] = field(default_factory=list)


class Asking:
    """Gives answers in lists by `next`, None at the end; runs in the desk's event loop.

    A prompt that failed is given out as rejected only once another is answered, or at the end where any was: else it
    was the service that failed, which is raised and recorded of no prompt.
    """

    def __init__(self, desk: Desk, requests: Sequence[tuple[int, Request]]) -> None:
        self._desk = desk
        self._groups: dict[str, _Group] = {}
        for item_id, request in requests:
            self._groups.setdefault(request.key, _Group(request)).items.append(item_id)
        self._ready: deque[TextCompletion] = deque()
        self._held: list[tuple[_Group, Fault]] = []
        self._any = False
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> list[TextCompletion] | None:
        """Some answers, at least one; None after the last. Raises the error that ended the call, after what came."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(lambda _: self._news.set())
        while not self._ready:
            if self._task.done():
                if self._error is not None:
                    raise self._error
                self._task.result()
                return None
            self._news.clear()
            await self._news.wait()
        found = list(self._ready)
        self._ready.clear()
        return found

    async def close(self) -> None:
        """Start no further call; what is under way is waited for and kept, as it is paid for."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])

    def _going(self) -> bool:
        return not self._closed and self._error is None

    async def _run(self) -> None:
        try:
            known = await self._desk.cached([group.request for group in self._groups.values()])
        except LimbeckError as error:
            self._error = error
            return
        for key, answer in known.items():
            self._desk.tally.cached += 1
            self._give(self._groups[key], answer)
        left = deque(group for key, group in self._groups.items() if key not in known)
        workers = [self._work(left) for _ in range(min(self._desk.config.concurrency, len(left)))]
        await asyncio.gather(*workers)
        if self._going() and self._held:
            if self._any or self._desk.answered:
                self._give_held()
            else:
                self._error = self._given_up(self._held[-1][1])

    async def _work(self, left: deque[_Group]) -> None:
        while left and self._going():
            group = left.popleft()
            try:
                answer = await self._desk.ask(group.request, self._going)
            except Stopped:
                return
            except Fault as fault:
                self._failed(group, fault)
            except Exception as error:
                self._error = self._error or error
            else:
                self._give(group, answer)
                self._give_held()

    def _failed(self, group: _Group, fault: Fault) -> None:
        if fault.kind == "row" or (fault.kind == "unclear" and self._desk.answered):
            self._reject(group, fault)
            return
        self._held.append((group, fault))
        if len(self._held) >= IN_A_ROW:
            self._error = self._error or self._given_up(fault)

    def _given_up(self, fault: Fault) -> LimbeckError:
        return (refused if fault.kind == "unclear" else failing)(self._desk.config, fault)

    def _give_held(self) -> None:
        for group, fault in self._held:
            self._reject(group, fault)
        self._held.clear()

    def _reject(self, group: _Group, fault: Fault) -> None:
        for item in group.items:
            self._ready.append(TextCompletion(item, "", "stop", rejected=f"failed: {fault.words}"))
        self._news.set()

    def _give(self, group: _Group, answer: Answer) -> None:
        self._any = True
        tag = self._desk.config.reasoning_tag
        reasoning = f"<{tag}>{answer.reasoning}</{tag}>" if tag and answer.reasoning else ""
        lineage = {"model": answer.model or self._desk.config.model}
        told = {"system_fingerprint": answer.fingerprint} if answer.fingerprint else {}
        if group.request.logprobs and answer.tokens is None and answer.rejected is None:
            told["tokens"] = "do not make the text"
        used = {"prompt_tokens": answer.usage.read, "completion_tokens": answer.usage.written} if answer.usage else {}
        self._desk.tally.cached += len(group.items) - 1
        for item in group.items:
            self._ready.append(
                TextCompletion(
                    item,
                    reasoning + answer.text,
                    answer.finish,
                    rejected=answer.rejected,
                    tokens=answer.tokens,
                    lineage={**lineage, **told, **used},
                )
            )
        self._news.set()
