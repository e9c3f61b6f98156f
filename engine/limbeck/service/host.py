"""A teacher of a server: its worker process, kept alive, and what all clients ask of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from itertools import count
from typing import Literal

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import TeacherInfo
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.recipe import Bound
from limbeck.service.lane import Lane, Sink
from limbeck.service.process import WorkerProcess
from limbeck.signals.messages import error_message, error_of, info_of
from limbeck.v1 import teacher_service_pb2 as pb

BATCH_TOKENS = 8192
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker is started again
_STATES = {
    "starting": pb.Teacher.STATE_STARTING,
    "ready": pb.Teacher.STATE_READY,
    "failed": pb.Teacher.STATE_FAILED,
}

State = Literal["starting", "ready", "failed"]


class TeacherHost:
    """Runs a teacher in a worker process, asks it batches that clients share, and starts it again where it dies.

    Belongs to one event loop. `batch_tokens`: rows × longest of a batch; the teacher's own setting of this name where
    left out, else BATCH_TOKENS. `log` gets the worker's starts and ends and all that it prints, with the extra
    `teacher`.
    """

    def __init__(self, name: str, bound: Bound, *, batch_tokens: int | None = None, log: logging.Logger) -> None:
        self.name = name
        self.state: State = "starting"
        self.info: TeacherInfo | None = None
        self.restarts = 0  # workers lost
        self.phase = ""  # what is done while it starts
        self._since = time.monotonic()  # when that began
        self._bound = bound
        self._log = logging.LoggerAdapter(log, {"teacher": name})
        self._said: pb.Teacher | None = None
        self._error: LimbeckError | None = None
        self._settled = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._life: asyncio.Task[None] | None = None
        self._closed = False
        self._pause, self._not_before = 0.0, 0.0
        self._numbers = count(1)
        budget = batch_tokens or int(getattr(bound.config, "batch_tokens", BATCH_TOKENS))
        self.lanes = {
            "score": Lane(Reason.SCORING_FAILED, budget, self._numbers),
            "generate": Lane(Reason.GENERATION_FAILED, budget, self._numbers),
        }
        self._heads: dict[int, asyncio.Queue[internal.Answer | LimbeckError | None]] = {}
        self._pump_due = False

    @property
    def phase_seconds(self) -> float:
        """Seconds since the phase began; 0 where it does not start."""
        return time.monotonic() - self._since if self.phase else 0.0

    @property
    def message(self) -> pb.Teacher:
        """What it is; the limits are left out."""
        message = pb.Teacher()
        if self._said is not None:
            message.CopyFrom(self._said)
        message.name, message.plugin, message.state = self.name, self._bound.name, _STATES[self.state]
        if self.state == "failed" and self._error is not None:
            message.error.CopyFrom(error_message(self._error))
        message.phase, message.phase_seconds = self.phase, self.phase_seconds
        return message

    async def start(self) -> None:
        """Start the worker; returns when it is ready or has failed."""
        self._begin()
        await self._settled.wait()

    async def wait_ready(self) -> None:
        """Return when it answers. Raises the error of its start, or TEACHER_UNAVAILABLE; tries a failed start again."""
        self._try_again()
        await self._settled.wait()
        if self.state != "ready":
            raise self._error or _unavailable("it is not started")

    async def close(self) -> None:
        """End the worker and all that it started. What is not answered fails."""
        self._closed = True
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
        self._settle("failed", _unavailable("the server is closing"))

    def score(self, client: str, want: pb.Want, items: Sequence[pb.ScoreItem], sink: Sink, *, alone: bool) -> None:
        """Queue checked items; their answers go to `sink`, which has each item_id once among its unanswered ones."""
        self.lanes["score"].add(client, want, items, sink, alone=alone)
        self._added()

    def generate(self, client: str, sampling: pb.Sampling, prompts: Sequence[pb.Prompt], sink: Sink) -> None:
        """Queue checked prompts, as :meth:`score` does."""
        self.lanes["generate"].add(client, sampling, prompts, sink)
        self._added()

    def cancel(self, sink: Sink, item_ids: Sequence[int] | None = None) -> None:
        """Drop unanswered items of `sink`, all where none are named: nothing more comes of them."""
        for lane in self.lanes.values():
            for frame in lane.cancel(sink, item_ids):
                if self._worker is not None:
                    self._worker.post(frame)

    async def head(self) -> AsyncGenerator[bytes, None]:
        """The output head as encoded GetOutputHeadResponse messages, asked of the worker as they are taken.

        Raises CAPABILITY_MISSING, TEACHER_UNAVAILABLE, MODEL_INVALID.
        """
        await self.wait_ready()
        worker, offset, last = self._worker, 0, False
        while not last:
            if worker is None or worker is not self._worker:
                raise _unavailable("its worker has ended")
            number = next(self._numbers)
            pieces = self._heads[number] = asyncio.Queue()
            worker.post(internal.ToWorker(head=internal.HeadCall(call=number, offset=offset)))
            try:
                while (piece := await pieces.get()) is not None:
                    if isinstance(piece, LimbeckError):
                        raise piece
                    offset, last = offset + piece.cost, piece.last
                    yield piece.response
            finally:
                del self._heads[number]

    # ------------------------------------------------------------------------------------------------------ lives

    def _begin(self) -> None:
        if not self._closed and (self._life is None or self._life.done()):
            self._unsettle()
            self._life = asyncio.ensure_future(self._live())

    def _try_again(self) -> None:
        """Start a teacher that refused to, but not too soon."""
        if self.state == "failed" and time.monotonic() >= self._not_before:
            self._begin()

    def _unsettle(self, phase: str = "starting its process") -> None:
        self.state = "starting"
        self._settled.clear()
        self._enter(phase)

    def _enter(self, phase: str) -> None:
        """What is done from now on until it answers."""
        if phase != self.phase:
            self.phase, self._since = phase, time.monotonic()
            self._log.info("teacher starts: %s", phase)

    def _settle(self, state: State, error: LimbeckError | None = None) -> None:
        """The outcome of a start; a failure is one of all that waits."""
        self.state, self._error = state, error
        self.phase = ""
        self._settled.set()
        if error is not None:
            for lane in self.lanes.values():
                lane.fail_waiting(error)

    async def _live(self) -> None:
        """One worker after the other, until a teacher refuses to start."""
        while True:
            how = await self._one_life()
            pause = self._next_pause()
            if isinstance(how, LimbeckError):
                self._not_before = time.monotonic() + pause
                self._log.error("teacher cannot start: %s", how)
                self._settle("failed", how)
                return
            self.restarts += 1
            self._log.warning("worker ended %s; it is started again in %.1f s", how, pause)
            if self.state == "ready":
                self._unsettle(f"waiting for {pause:.1f} s, since its worker ended {how}")
            else:
                self._settle("failed", _unavailable(f"its worker ended {how} while it started"))
            await asyncio.sleep(pause)
            self._unsettle()

    def _next_pause(self) -> float:
        self._pause = min(max(2 * self._pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        return self._pause

    async def _one_life(self) -> str | LimbeckError:
        """A worker from start to end: how it ended, or why its teacher refused to start."""
        try:
            self._worker = worker = await WorkerProcess.start(self.name, self._bound, self._log)
        except OSError as error:
            return f"before it began ({error.strerror})"
        self._log.info("worker %d starts", worker.pid)
        try:
            while (message := await worker.receive()) is not None:
                if message.HasField("failed"):
                    return error_of(message.failed)
                self._hear(message)
        except Exception:  # a frame that cannot be, or a fault of ours: a new worker has neither
            self._log.exception("worker %d cannot be understood", worker.pid)
        finally:
            self._worker = None
            how = await worker.end()
            self._lose(_unavailable(f"its worker ended {how}"))
        return how

    def _hear(self, message: internal.FromWorker) -> None:
        kind = message.WhichOneof("kind")
        if kind == "answer":
            self._answer(message.answer)
        elif kind == "done":
            self._done(message.done)
        elif kind == "phase" and self.state == "ready":  # its engine has died, and it starts another
            self._unsettle(message.phase)
        elif kind == "phase":
            self._enter(message.phase)
        elif kind == "ready":
            self._said, self.info = message.ready, info_of(message.ready)
            self._log.info("teacher is ready")
            self._settle("ready")
            self._pump_soon()

    def _lose(self, error: LimbeckError) -> None:
        for lane in self.lanes.values():
            lane.lose(error)
        for pieces in self._heads.values():
            pieces.put_nowait(error)

    # -------------------------------------------------------------------------------------------------- questions

    def _added(self) -> None:
        self._try_again()
        if self.state == "failed":
            error = self._error or _unavailable("it is not started")
            loop = asyncio.get_running_loop()
            for lane in self.lanes.values():  # not now: the caller may not be ready for it
                loop.call_soon(lane.fail_waiting, error)
        else:
            self._pump_soon()

    def _pump_soon(self) -> None:
        """Make batches once everybody who is about to ask has asked."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._worker is None or self.state != "ready":
            return
        for lane in self.lanes.values():
            while frames := lane.next_call():
                for frame in frames:
                    self._worker.post(frame)

    def _answer(self, answer: internal.Answer) -> None:
        for lane in self.lanes.values():
            if lane.knows(answer.call):
                lane.answer(answer)
        if answer.call in self._heads:
            self._heads[answer.call].put_nowait(answer)

    def _done(self, done: internal.CallDone) -> None:
        failed = done.HasField("error")
        if not failed:
            self._pause = 0.0  # it works
        for lane in self.lanes.values():
            if lane.knows(done.call):
                lane.done(done)
        if done.call in self._heads:
            self._heads[done.call].put_nowait(error_of(done.error) if failed else None)
        self._pump_soon()


def _unavailable(why: str) -> LimbeckError:
    hint = "it is started again: ask again"
    return LimbeckError(
        Reason.TEACHER_UNAVAILABLE, problems=[Problem(f"the teacher does not answer: {why}", hint=hint)]
    )
