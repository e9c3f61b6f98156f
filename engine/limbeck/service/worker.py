"""The worker: a process of its own in which one teacher computes, started by its host with one end of a socket.

It ends with all that it started as soon as the other end is gone, whatever it is doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.hosting.kin import MARK, end_kin
from limbeck.interfaces import (
    Prompt,
    Sampling,
    ScoreItem,
    StartingTeacher,
    Teacher,
    TeacherInfo,
    TeacherPlugin,
    Want,
)
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.plugins import load_plugins
from limbeck.service.heads import HeadDesk
from limbeck.service.link import Link
from limbeck.signals.fragments import fragments
from limbeck.signals.messages import error_message, item_of, numbers, sampling_of, teacher_message, want_of
from limbeck.signals.said import completion_messages
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

LONGEST_PHASE = 200  # characters


@dataclass(eq=False)
class _Call:
    """A call that waits or is under way. `left`: places that are not answered and still wanted."""

    number: int
    request: Any
    left: set[int]
    task: asyncio.Task[None] | None = None


class Worker:
    """Answers the calls of a link: scores, texts and the head in a lane each, one call at a time."""

    def __init__(self, link: Link, teacher: Teacher, info: TeacherInfo) -> None:
        self._link, self._teacher, self._info = link, teacher, info
        self._calls: dict[int, _Call] = {}
        self._head = HeadDesk(teacher)
        self._mending = asyncio.Lock()

    async def run(self) -> None:
        """Answer until the other end is gone."""
        answers: dict[str, Callable[[_Call], Coroutine[Any, Any, None]]] = {
            "score": self._score,
            "generate": self._generate,
            "head": self._answer_head,
        }
        lanes: dict[str, asyncio.Queue[_Call]] = {name: asyncio.Queue() for name in answers}
        tasks = [asyncio.ensure_future(self._lane(lanes[name], answers[name])) for name in answers]
        try:
            while (message := await self._link.receive(internal.ToWorker)) is not None:
                kind = message.WhichOneof("kind")
                if kind in lanes:
                    request = getattr(message, kind)
                    count = {"score": "items", "generate": "prompts"}.get(kind)
                    places = range(len(getattr(request, count)) if count else 1)
                    call = self._calls[request.call] = _Call(request.call, request, set(places))
                    lanes[kind].put_nowait(call)
                elif kind == "cancel":
                    self._cancel(message.cancel)
        finally:
            for task in tasks:
                task.cancel()

    def _cancel(self, message: internal.CancelItems) -> None:
        call = self._calls.get(message.call)
        if call is not None:
            call.left -= set(message.places)
            if not call.left and call.task is not None:
                call.task.cancel()

    async def _lane(self, queue: asyncio.Queue[_Call], answer: Callable[[_Call], Coroutine[Any, Any, None]]) -> None:
        while True:
            call = await queue.get()
            done = internal.CallDone(call=call.number)
            if call.left:
                call.task = asyncio.ensure_future(answer(call))
                await asyncio.wait([call.task])
                error = None if call.task.cancelled() else call.task.exception()
                if error is not None:
                    done.error.CopyFrom(error_message(told(error)))
                    await self._end_if_broken()
            del self._calls[call.number]
            await self._link.send(internal.FromWorker(done=done))

    async def _end_if_broken(self) -> None:
        """End the process where the teacher answers nothing any more: after some errors a GPU is lost to its process.

        Asked before the error is told, so that nobody else's items are failed by it. A teacher whose engine alone has
        died starts another, and the server hears of that as of the first start.
        """
        phases: list[str] = []
        tell = phase_teller(self._link)

        def starts(phase: str) -> None:
            phases.append(phase)
            tell(phase)

        try:
            async with self._mending:
                if isinstance(self._teacher, StartingTeacher):
                    await self._teacher.start(starts)
                await ask_little(self._teacher, self._info)
        except Exception as error:
            told(error)
            print("the teacher does not recover: the worker ends", file=sys.stderr, flush=True)
            os._exit(1)
        if phases:
            await self._link.send(internal.FromWorker(ready=teacher_message(self._info)))

    async def _score(self, call: _Call) -> None:
        request = call.request
        want = want_of(request.want)
        bfloat16 = request.want.hidden_dtype == signal_pb2.DTYPE_BFLOAT16
        names = _names(request.items)
        asked = [item_of(message, want) for message in request.items]
        items = [replace(item, item_id=name) for item, name in zip(asked, names, strict=True)]
        async with aclosing(self._teacher.score(items, want)) as answers:
            async for place, signal in _by_place(answers, names, lambda answer: int(answer[0])):
                for part in fragments(asked[place], signal[1], want, self._info, bfloat16=bfloat16):
                    if place not in call.left:
                        break
                    await self._answer(call, place, pb.ScoreResponse(fragment=part), part.last, part.cost)
        _require_all(call, "scored")

    async def _generate(self, call: _Call) -> None:
        request = call.request
        names = _names(request.prompts)
        prompts = [
            Prompt(name, numbers(message.ids, "<i4", f"item {message.item_id}: ids"))
            for message, name in zip(request.prompts, names, strict=True)
        ]
        sampling = sampling_of(request.sampling)
        async with aclosing(self._teacher.generate(prompts, sampling)) as answers:
            async for place, answer in _by_place(answers, names, lambda answer: int(answer.item_id)):
                asked, name = prompts[place], request.prompts[place].item_id
                for part, cost in completion_messages(asked, answer, sampling, self._info, name):
                    if place not in call.left:
                        break
                    await self._answer(call, place, pb.GenerateResponse(completion=part), not part.more, cost)
        _require_all(call, "continued")

    async def _answer_head(self, call: _Call) -> None:
        async for response, size, last in self._head.answers(call.request.offset):
            await self._answer(call, 0, response, last, size)

    async def _answer(self, call: _Call, place: int, response: Any, last: bool, cost: int) -> None:
        if last:
            call.left.discard(place)
        answer = internal.Answer(
            call=call.number, place=place, last=last, cost=cost, response=response.SerializeToString()
        )
        await self._link.send(internal.FromWorker(answer=answer))


def _names(messages: Sequence[pb.ScoreItem] | Sequence[pb.Prompt]) -> list[int]:
    """What the teacher calls the items: the clients' names, or, where two clients chose the same one, places."""
    names = [message.item_id for message in messages]
    return names if len(set(names)) == len(names) else list(range(len(names)))


async def _by_place(
    answers: AsyncIterator[Any], names: Sequence[int], name_of: Callable[[Any], int]
) -> AsyncIterator[tuple[int, Any]]:
    """Answers with their places. Raises SIGNAL_INVALID for one that was not asked, or that comes twice."""
    places = {name: place for place, name in enumerate(names)}
    async for answer in answers:
        place = places.pop(name_of(answer), None)
        if place is None:
            problem = Problem(f"item {name_of(answer)} was answered, and was not asked or had been answered")
            raise LimbeckError(Reason.SIGNAL_INVALID, problems=[problem])
        yield place, answer


def _require_all(call: _Call, done: str) -> None:
    if call.left:
        problem = Problem(f"the teacher ended with {len(call.left)} items not {done}", hint="see the teacher's plugin")
        raise LimbeckError(Reason.SIGNAL_INVALID, problems=[problem])


def told(error: BaseException) -> LimbeckError:
    """The error as it travels; all of it goes to the log, which is this process's stderr."""
    if isinstance(error, LimbeckError):
        print(error, file=sys.stderr, flush=True)
        return error
    traceback.print_exception(error)
    return LimbeckError(Reason.INTERNAL)


async def ask_little(teacher: Teacher, info: TeacherInfo) -> None:
    """Ask for one row, or one token. Raises what the teacher raises, also while it loads its weights."""
    ids = np.full(2, info.bos_id or 0, np.int32)
    wants = {
        "top_k": Want(top_k=1, temperatures=(info.temperatures or (1.0,))[:1]),
        "target": Want(target=True),
        "hidden_states": Want(layers=(-1,)),
        "samples": Want(samples=1),
        "token_ids": Want(token_ids=True),
        "full": Want(full=True),
    }
    want = next((want for name, want in wants.items() if name in info.capabilities), None)
    if want is not None:
        item = ScoreItem(0, ids, 0, 1, np.zeros((1, 1), np.int32) if want.token_ids else None)
        async with aclosing(teacher.score([item], want)) as signals:
            async for _ in signals:
                pass
    else:
        async with aclosing(teacher.generate([Prompt(0, ids)], Sampling(max_new_tokens=1))) as texts:
            async for _ in texts:
                pass


def make_teacher(start: internal.Start) -> Teacher:
    """The teacher that `start` names. Raises what its plugin raises."""
    options = json.loads(start.teacher)
    plugin = load_plugins().get("teacher", options.pop("plugin"))
    assert isinstance(plugin, TeacherPlugin)
    teacher = plugin.factory(plugin.config.model_validate_json(json.dumps(options)))
    if not isinstance(teacher, Teacher):
        hint = "name it in a recipe: it is asked with text, and a server sends token ids"
        problem = Problem(f"a server has no use for {plugin.name}, which has no token ids", hint=hint)
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
    return teacher


def phase_teller(link: Link) -> Callable[[str], None]:
    """Tells the server what is done next; from any thread, and at once, since the loop may be busy with it."""
    loop, ours = asyncio.get_running_loop(), threading.get_ident()

    def tell(phase: str) -> None:
        frame = internal.FromWorker(phase=str(phase)[:LONGEST_PHASE])
        if threading.get_ident() == ours:
            link.post(frame)
        else:
            loop.call_soon_threadsafe(link.post, frame)

    return tell


async def serve(end: socket.socket) -> None:
    """Be the worker at this end of a socket."""
    link = await Link.of(end)
    start = await link.receive(internal.ToWorker)
    if start is None:
        return
    tell = phase_teller(link)
    try:
        tell("loading its plugin")
        teacher = make_teacher(start.start)
        if isinstance(teacher, StartingTeacher):
            await teacher.start(tell)
            info = teacher.info()
        else:
            tell("loading the model")
            info = teacher.info()
        tell("answering a first question")
        await ask_little(teacher, info)  # who is ready has its weights, and they are good
    except Exception as error:
        await link.send(internal.FromWorker(failed=error_message(told(error))))
        return
    await link.send(internal.FromWorker(ready=teacher_message(info)))
    await Worker(link, teacher, info).run()


def end_with(fd: int) -> None:
    """Kill this process and all it started once the other end of `fd` is gone. In a thread: the loop may be busy."""
    poll = select.poll()
    poll.register(fd, 0)  # of hang-ups one is always told
    poll.poll()
    end_kin(os.getpid(), os.environ[MARK])


def main(fd: int) -> None:
    """`python -m limbeck.service.worker FD`, the leader of a process group of its own."""
    os.set_inheritable(fd, False)
    # what is sent to every process of a service is the server's to hear: it lets the worker finish first
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)
        os.register_at_fork(after_in_child=partial(signal.signal, name, signal.SIG_DFL))
    threading.Thread(target=end_with, args=(fd,), daemon=True).start()
    asyncio.run(serve(socket.socket(fileno=fd)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
