"""Asks requests until they are answered: cache, budget, gate and tries. One per teacher, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from platformdirs import user_cache_path

from limbeck.errors import LimbeckError, Problem, Reason, counted
from limbeck.report.spending import money
from limbeck_openai.answers import Answer
from limbeck_openai.caller import Caller
from limbeck_openai.config import OpenAIConfig
from limbeck_openai.faults import Fault
from limbeck_openai.gate import POLL, Gate, Stopped, pause, rest
from limbeck_openai.keys import read_key
from limbeck_openai.requests import Request
from limbeck_openai.store import Cost, Spent, Store
from limbeck_openai.tally import Tally, Usage

P = ParamSpec("P")
T = TypeVar("T")
LONGEST_WAIT = 3600.0  # seconds that a service may have us wait before the run rather stops


class Desk:
    """Owns the connection, the gate and the store. `answered`: whether the service ever answered one of its calls."""

    def __init__(self, config: OpenAIConfig, tally: Tally) -> None:
        self.config, self.tally = config, tally
        self.gate = Gate(tally)
        self.answered = False
        self._caller = Caller(config, read_key(config.key_variable), self.gate)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="limbeck-openai-cache")
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._under_way: dict[str, asyncio.Future[Answer]] = {}

    async def close(self) -> None:
        """Close connections and cache. A second call does nothing."""
        await self._caller.close()
        if self._store is not None:
            await self._on_disk(self._store.close)
        self._disk.shutdown()

    async def cached(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Answers that are there already, by key."""
        store = await self._opened()
        found = await self._on_disk(store.find, [request.key for request in requests])
        return {key: answer for key, answer in found.items() if self._fits(answer)}

    async def ask(self, request: Request, going: Callable[[], bool]) -> Answer:
        """The answer, from the cache or the service. What is under way already is not asked again.

        Raises Fault where all tries failed or the prompt is refused, Stopped once `going` says no, and LimbeckError for
        what concerns every prompt.
        """
        while (other := self._under_way.get(request.key)) is not None:
            while not other.done():
                await asyncio.wait([other], timeout=POLL)
                await rest(0, going)
            with suppress(Stopped):
                answer = other.result()
                self.tally.cached += 1
                return answer
        mine = self._under_way[request.key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._claimed(request, going)
        except Exception as error:
            mine.set_exception(error)
            mine.exception()  # seen: nobody else may wait for it
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            del self._under_way[request.key]

    async def _claimed(self, request: Request, going: Callable[[], bool]) -> Answer:
        store = await self._opened()
        while not await self._on_disk(store.claim, request.key):  # another process asks for it
            await rest(POLL, going)
            await self._mourn(store)
        try:
            found = (await self._on_disk(store.find, [request.key])).get(request.key)
            if found is not None and self._fits(found):
                self.tally.cached += 1
                return found
            return await self._tried(store, request, going)
        finally:
            with suppress(LimbeckError):  # a disk that is full, say: then it ends with this process
                await self._on_disk(store.release, request.key)

    def _fits(self, answer: Answer) -> bool:
        return self.config.serves(answer.model)

    async def _tried(self, store: Store, request: Request, going: Callable[[], bool]) -> Answer:
        failed = 0
        while True:
            async with self._slots:
                await rest(0, going)
                await self.gate.passed(request.most_read // 4 + request.most_written, going)
                began = asyncio.get_running_loop().time()
                try:
                    answer = await self._once(store, request, going)
                except Fault as caught:
                    fault = caught
                else:
                    self.answered = True
                    self.gate.answered()
                    return answer
            self._stop_where_all_would(fault)
            if fault.kind == "limited":
                self._limited(fault, began)
            elif fault.kind in ("row", "unclear"):
                raise fault
            else:
                failed += 1
                if failed == self.config.tries:
                    if fault.kind == "nobody":
                        raise nobody(self.config, fault)
                    raise fault
                if fault.wait is not None:
                    self._wait_as_told(fault, began)
                elif fault.pause:
                    await rest(pause(failed), going)
            self.tally.retries += 1

    def _limited(self, fault: Fault, began: float) -> None:
        self._wait_as_told(fault, began)
        longest = self.config.timeout * self.config.tries
        if self.gate.refusals > self.config.tries and self.gate.refused_for >= longest:
            rounds = f"{counted(self.gate.refusals, 'rounds')} of them met 429 within {self.gate.refused_for:,.0f} s"
            raise LimbeckError(
                Reason.SERVER_UNAVAILABLE,
                f"{self.config.base_url} takes no calls: {rounds}, and none was answered.",
                [Problem(fault.words, hint="lower concurrency; the same command goes on later")],
            )

    def _wait_as_told(self, fault: Fault, began: float) -> None:
        if fault.wait is not None and fault.wait > LONGEST_WAIT:
            problem = Problem(fault.words, hint=f"give the same command again in {fault.wait:,.0f} s: it goes on")
            message = f"{self.config.base_url} asks to wait {fault.wait:,.0f} s."
            raise LimbeckError(Reason.SERVER_UNAVAILABLE, message, [problem])
        self.gate.refused(began, fault.wait)

    def _stop_where_all_would(self, fault: Fault) -> None:
        if fault.kind == "all":
            raise refused(self.config, fault)
        if fault.kind == "mismatch":
            hint = f"name what is served in model, or say served_as: {fault.words} where that is the model you mean"
            problem = Problem(
                f"model {fault.words!r} answered, {self.config.model!r} was asked", field="model", hint=hint
            )
            raise LimbeckError(Reason.TEACHER_MISMATCH, problems=[problem])

    async def _once(self, store: Store, request: Request, going: Callable[[], bool]) -> Answer:
        """One call, journalled before and after."""
        number = await self._within_budget(store, request, going)
        self.tally.calls += 1
        try:
            answer = await self._caller.call(request)
        except Fault as fault:
            cost = self._counted(request, fault.usage) if fault.paid else self._cost(0, 0)
            await self._on_disk(store.end, number, cost)
            raise
        cost = self._counted(request, answer.usage)
        try:
            await self._on_disk(store.end, number, cost, request, answer)
        except LimbeckError as error:
            lost = Problem(f"an answer of {cost.tokens:,} tokens, which was paid for, could not be kept")
            raise LimbeckError(error.reason, error.message, [*error.problems, lost]) from error
        return answer

    async def _within_budget(self, store: Store, request: Request, going: Callable[[], bool]) -> int:
        most = self._cost(request.most_read, request.most_written)
        while True:
            begun = await self._on_disk(store.begin, request.key, most, self.config.budget)
            if isinstance(begun, int):
                return begun
            if not begun.under_way:
                raise self._exhausted(begun, most)
            await rest(POLL, going)  # what is under way will cost less than it may
            await self._mourn(store)

    def _exhausted(self, spent: Spent, most: Cost) -> LimbeckError:
        budget = self.config.budget
        assert budget is not None
        problems = []
        if budget.tokens is not None and spent.tokens + most.tokens > budget.tokens:
            text = f"{spent.tokens:,} of {budget.tokens:,} tokens are used, the next call may take {most.tokens:,}"
            problems.append(Problem(text, field="budget.tokens"))
        if budget.money is not None and spent.money + most.money > budget.money:
            used = f"{money(spent.money, most.currency)} of {money(budget.money, most.currency)} are used"
            text = f"{used}, the next call may cost {money(most.money, most.currency)}"
            problems.append(Problem(text, field="budget.money"))
        hint = "every answer so far is kept; raise the budget and give the same command again: it goes on"
        problems[-1] = Problem(problems[-1].message, field=problems[-1].field, hint=hint)
        return LimbeckError(Reason.BUDGET_EXHAUSTED, problems=problems)

    def _cost(self, read: int, written: int) -> Cost:
        price = self.config.price
        money = (read * price.input + written * price.output) / 1e6 if price else 0.0
        return Cost(read + written, money, price.currency if price else "")

    def _counted(self, request: Request, usage: Usage | None) -> Cost:
        """What a call cost; the most it may have, where the service did not say."""
        if usage is None:
            self.tally.unmetered += 1
            usage = Usage(request.most_read, request.most_written)
        cost = self._cost(usage.read, usage.written)
        self.tally.read += usage.read
        self.tally.written += usage.written
        self.tally.money += cost.money
        return cost

    async def _opened(self) -> Store:
        async with self._opening:
            if self._store is None:
                folder = Path(self.config.cache) if self.config.cache else user_cache_path("limbeck") / "openai"
                self._store = await self._on_disk(Store, folder)
                await self._mourn(self._store)
        return self._store

    async def _mourn(self, store: Store) -> None:
        self.tally.lost += await self._on_disk(store.mourn)

    async def _on_disk(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the one thread of the disk."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, lambda: function(*args, **kwargs))


def refused(config: OpenAIConfig, fault: Fault) -> LimbeckError:
    """The service refuses every call."""
    variable = config.key_variable
    hint = "nothing more was asked; answers so far are kept"
    if fault.words.startswith(("401", "403")):
        hint = f"the key is the one of {variable}" if variable else "no key was sent: name its variable in key_env"
    elif fault.words.startswith("404"):
        hint = "look at base_url (mostly …/v1), api and model"
    return LimbeckError(Reason.TEACHER_REFUSED, f"{config.base_url} refuses.", [Problem(fault.words, hint=hint)])


def nobody(config: OpenAIConfig, fault: Fault) -> LimbeckError:
    """Nobody is there."""
    hint = "look at base_url and the network; the same command goes on"
    return LimbeckError(
        Reason.SERVER_UNAVAILABLE,
        f"Nobody is there at {config.base_url}, asked {counted(config.tries, 'times')}.",
        [Problem(fault.words, field="base_url", hint=hint)],
    )


def failing(config: OpenAIConfig, fault: Fault) -> LimbeckError:
    """Prompt after prompt failed, and nothing was answered meanwhile."""
    hint = "nothing was recorded of these prompts; the same command asks them again"
    return LimbeckError(
        Reason.SERVER_UNAVAILABLE,
        f"{config.base_url} answers nothing usable any more; a prompt is asked {counted(config.tries, 'times')}.",
        [Problem(fault.words, field="base_url", hint=hint)],
    )
