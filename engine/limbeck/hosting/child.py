"""The process of a run, or of a look at a recipe, that a server starts: `python -P -m limbeck.hosting.child FD`.

It works as `limbeck run`, `resume` and `check` do, and talks to its server over the socket FD, as
:mod:`limbeck.hosting.channel` says. It dies with its server, at once, as of a SIGKILL: a resume is exact.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import stat
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from limbeck.errors import EXIT_OK, EXIT_SIGINT, LimbeckError, Reason, unexpected
from limbeck.hosting.channel import Checked, Decoder, Ending, Message, Start, encode, error_fields
from limbeck.hosting.process import last_lines
from limbeck.runs.stage import Interrupted
from limbeck.runs.stopping import EXIT_CODES, StopSignal
from limbeck.steering import CheckpointId, Steering

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

_READ_BYTES = 1 << 16


class Line:
    """The child's end of the channel; any thread may speak."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._decoder = Decoder()
        self._lock = threading.Lock()
        self._waiting: list[Message] = []

    def receive(self) -> Message | None:
        """The next message; None where the server is gone. One thread at a time."""
        while not self._waiting:
            try:
                data = self._end.recv(_READ_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._waiting += self._decoder.feed(data)
        return self._waiting.pop(0)

    def say(self, message: Mapping[str, Any]) -> None:
        """Send; lost where the server is gone, which ends this process anyway."""
        raw = encode(message)
        with self._lock:
            self._send(raw)

    def tick(self, event: Event) -> None:
        """Tell that an event is on disk. Where the server is behind it is not told: a later tick says so, too."""
        raw = encode({"tick": event.sequence})
        with self._lock:
            try:
                sent = self._end.send(raw, socket.MSG_DONTWAIT)
            except OSError:
                return
            if sent < len(raw):
                self._send(raw[sent:])

    def _send(self, raw: bytes) -> None:
        with suppress(OSError):
            self._end.sendall(raw)


class Child:
    """One run, or one look at a recipe."""

    def __init__(self, line: Line, start: Start) -> None:
        self._line, self._start = line, start
        self.stop = StopSignal(notice=b"")
        self._steering = Steering(applied=self._applied, saved=self._saved, refused=self._refused)
        self._log_begin = _log_size()
        self._printed: BaseException | None = None

    def listen(self) -> None:
        """Do as the server says, until it is gone: then this process ends."""
        try:
            while (message := self._line.receive()) is not None:
                if "stop" in message:
                    self.stop.ask(message["stop"])
                elif "knobs" in message:
                    self._steering.put(message["knobs"]["id"], message["knobs"]["values"])
                elif "checkpoint" in message:
                    self._steering.request_checkpoint(message["checkpoint"])
        except BaseException:  # what cannot be understood: nobody could stop this process any more
            traceback.print_exc()
        finally:
            _die()

    def work(self) -> int:
        """Do what the process was started for, and say how it ended, whatever happens. Returns the exit code."""
        how: Ending = "failed"
        signal: str | None = None
        fault: LimbeckError | None = None
        try:
            self._begin()
            if self._start.do == "check":
                fault = self._check()
            else:
                self._run()
            how = "failed" if fault is not None else "succeeded"
        except Interrupted as interrupted:
            how, signal = "interrupted", interrupted.signal
        except KeyboardInterrupt:
            how, signal = "interrupted", "SIGINT"
        except BaseException as error:
            fault = self._told(error)
        self._line.say({"ended": how, "signal": signal, "error": None if fault is None else error_fields(fault)})
        if how == "interrupted":
            return EXIT_CODES.get(signal or "", EXIT_SIGINT)
        return EXIT_OK if fault is None else fault.exit_code

    def _begin(self) -> None:
        """Enter the sandbox, then listen: a thread that was there before would stay outside."""
        from limbeck.hosting.sandbox import enter
        from limbeck.runs.libraries import prepare_libraries

        enter(self._start.workspace, self._start.read)
        prepare_libraries()
        threading.Thread(target=self.listen, name="server", daemon=True).start()

    def _run(self) -> None:
        from limbeck.hosting.workspace import Workspace
        from limbeck.plugins import load_plugins
        from limbeck.runs.pipeline import run_recipe

        registry = load_plugins()
        recipe = Workspace(self._start.workspace, self._start.read).reload(self._start.recipe, registry)
        # a run that died before it had recorded its recipe has done nothing yet: it starts afresh
        resume = self._start.resume and (recipe.output / "resolved.yaml").is_file()
        run_recipe(
            recipe,
            registry,
            display=self._line.tick,
            stop=self.stop,
            resume=resume,
            steering=self._steering,
            said=self._said,
        )

    def _check(self) -> LimbeckError | None:
        from limbeck.hosting.workspace import Workspace
        from limbeck.plugins import load_plugins
        from limbeck.runs.look import Look, look_at

        try:
            registry = load_plugins()
            Workspace(self._start.workspace, self._start.read).reload(self._start.recipe, registry)
            found = look_at(self._start.recipe, registry)
        except Exception as error:
            found = Look(None, self._told(error))
        is_good = found.recipe is not None and found.error is None
        resolved = found.recipe.resolved() if found.recipe is not None and is_good else {}
        self._line.say(Checked(found.error, found.warnings, resolved, found.facts).message())
        return found.error

    def _told(self, error: BaseException) -> LimbeckError:
        """The error as it travels; all of it goes to the log, once."""
        if error is not self._printed:
            _print(error)
        return unexpected(error)

    def _said(self, error: BaseException) -> str:
        """The last lines of the log, of a run that fails: with an error that nobody expected, where it came from."""
        if unexpected(error).reason is Reason.INTERNAL:
            _print(error)
            self._printed = error
        with suppress(OSError):
            return last_lines(sys.stderr.fileno(), self._log_begin) if self._log_begin is not None else ""
        return ""

    def _applied(self, number: int) -> None:
        self._line.say({"knobs": number})

    def _saved(self, name: CheckpointId, path: str, step: int, size: int) -> None:
        self._line.say({"checkpoint": name, "path": path, "step": step, "bytes": size})

    def _refused(self, name: CheckpointId, error: LimbeckError) -> None:
        self._line.say({"checkpoint": name, "error": error_fields(error)})


def _print(error: BaseException) -> None:
    """Say an error on stderr, which is the log."""
    found = unexpected(error)
    with suppress(OSError):  # a full disk
        if found.reason is Reason.INTERNAL:
            traceback.print_exception(error)
        else:
            print(f"{found} [{found.reason}]", file=sys.stderr)
        sys.stderr.flush()


def _log_size() -> int | None:
    """Where what this process prints begins in its log; None where stderr is no file."""
    with suppress(OSError, ValueError):
        status = os.fstat(sys.stderr.fileno())
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def _die() -> None:
    """End this process and all that it started."""
    from limbeck.hosting.kin import MARK, end_kin

    try:
        if MARK in os.environ:
            end_kin(os.getpid(), os.environ[MARK])
    finally:
        os._exit(1)


def main(fd: int) -> None:
    """Be the child at the end `fd` of a socket pair."""
    faulthandler.enable(all_threads=False)  # the last words of a crash, on stderr
    os.set_inheritable(fd, False)
    line = Line(socket.socket(fileno=fd))
    message = line.receive()
    if message is None:
        return
    child = Child(line, Start.of(message))
    with child.stop:
        code = child.work()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)  # past what libraries do at the end: all that counts is on disk, and was said


if __name__ == "__main__":
    main(int(sys.argv[1]))
