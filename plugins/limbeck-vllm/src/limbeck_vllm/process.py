"""An engine's process as its teacher sees it: start, questions, end. Belongs to no event loop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck_vllm.frames import PREFIX, Abort, Answer, Ended, Message, Question, Ready, Refused, Start, packed, unpacked
from limbeck_vllm.words import SHOWN, STARTING, lacks_memory, phase_of, reason_of

Heard = Answer | Refused | LimbeckError
KEPT = 500  # lines of what it prints
LEAVE = 10.0  # seconds that it may take to end itself
DRAIN = 2.0  # seconds for the last of what it prints
AT_START = "`gpu_memory_utilization`, `max_model_len`, on a CPU `kv_cache_memory_bytes`"
AT_WORK = "`max_num_batched_tokens` (a step has so many rows of the whole vocabulary), `gpu_memory_utilization`"

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # the model is a folder
    "NO_COLOR": "1",
}


class EngineProcess:
    """One life of an engine, begun at once. `ready` is set when it answers, or cannot be started.

    Everything here may be called from any thread. What is heard is told in a thread of this object's own.
    """

    def __init__(self, start: Start) -> None:
        self.ready: Future[Ready] = Future()
        self.ready.set_running_or_notify_cancel()  # so that a caller who is cancelled does not cancel it for others
        self.answered = False
        self.error: LimbeckError | None = None
        self._ended = 0.0
        self.phases = [STARTING]
        self._watchers: list[Callable[[str], object]] = []
        self._asked: dict[int, Callable[[Heard], object]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._last_words = ""
        self._ending = False
        self._shown = SHOWN in os.environ
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "limbeck_vllm.child", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={SHOWN: "INFO"} | os.environ | ENVIRONMENT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._printing = threading.Thread(target=self._print, daemon=True, name="limbeck-vllm-log")
        self._printing.start()
        self._reading = threading.Thread(target=self._read, daemon=True, name="limbeck-vllm")
        self._reading.start()
        self._send(start)

    @property
    def pid(self) -> int:
        """The process id, and its group's."""
        return self._process.pid

    def rested(self, rest: float) -> float:
        """When, by :func:`time.monotonic`, an engine that has ended is `rest` seconds past."""
        return self._ended + rest

    def watch(self, told: Callable[[str], object]) -> None:
        """Tell the phases of the start so far, and those to come."""
        with self._lock:
            for phase in self.phases:
                told(phase)
            self._watchers.append(told)

    def ask(self, question: Question, heard: Callable[[Heard], object]) -> None:
        """Ask, and hear one thing about it."""
        with self._lock:
            error = self.error
            if error is None:
                self._asked[question.number] = heard
        if error is not None:
            heard(error)
        else:
            self._send(question)

    def abort(self, numbers: tuple[int, ...]) -> None:
        """Take questions back: nothing is heard of them any more."""
        with self._lock:
            known = tuple(number for number in numbers if self._asked.pop(number, None) is not None)
        if known:
            self._send(Abort(known))

    def end(self) -> None:
        """End it with all that it started, and wait for that. A second call does nothing more."""
        self._ending = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            self._kill()
        self._reading.join(LEAVE)

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, message: Message) -> None:
        with self._sending, suppress(OSError):  # its end is heard by the reader
            self._socket.sendall(packed(message))

    def _read(self) -> None:
        with self._socket.makefile("rb") as stream:
            while True:
                try:
                    prefix = stream.read(PREFIX)
                    content = stream.read(int.from_bytes(prefix, "little")) if len(prefix) == PREFIX else b""
                except OSError:
                    break
                if not content:
                    break
                self._hear(unpacked(content))
        self._kill()  # what is left of its group, too
        self._printing.join(DRAIN)
        self._socket.close()
        self._tell_end()

    def _hear(self, message: Any) -> None:
        if isinstance(message, Ready):
            self.ready.set_result(message)
        elif isinstance(message, Ended):
            self._last_words = message.words
        else:
            self.answered = True
            with self._lock:
                heard = self._asked.pop(message.number, None)
            if heard is not None:
                heard(message)

    def _tell_end(self) -> None:
        started = self.ready.done()
        error = self._why(started)
        with self._lock:
            self.error, self._ended = error, time.monotonic()
            waiting = list(self._asked.values())
            self._asked.clear()
        if not started:
            self.ready.set_exception(error)
        for heard in waiting:
            heard(error)

    def _why(self, started: bool) -> LimbeckError:
        if self._ending:
            return LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[Problem("the engine was ended")])
        words = reason_of(list(self._lines), self._last_words)
        hint = "" if self._shown else f"{SHOWN}=INFO in the environment shows all that vLLM prints"
        if lacks_memory(words):
            settings = AT_WORK if started else AT_START
            hint = "; ".join(filter(None, [f"see {settings} of vLLM's settings", hint]))
        if started:
            problem = Problem(f"vLLM's engine ended while it worked: {words}", hint=hint or None)
            return LimbeckError(Reason.TEACHER_UNAVAILABLE, problems=[problem])
        model = bool(self._last_words) and not lacks_memory(words)
        reason = Reason.MODEL_INVALID if model else Reason.TEACHER_UNAVAILABLE
        problem = Problem(f"vLLM's engine does not start: {words}", field="teacher", hint=hint or None)
        return LimbeckError(reason, problems=[problem])

    def _print(self) -> None:
        """Keep what it prints; into stderr only where the environment asks for it."""
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            for raw in printed:
                line = raw.decode(errors="replace")
                self._lines.append(line)
                if self._shown:
                    print(line, end="", file=sys.stderr, flush=True)
                phase = phase_of(line)
                if phase is not None and phase not in self.phases and not self.ready.done():
                    with self._lock:
                        self.phases.append(phase)
                        for told in self._watchers:
                            told(phase)
