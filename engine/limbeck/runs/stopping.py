"""SIGINT and SIGTERM as a request to stop where the run can go on; a second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from limbeck.errors import EXIT_SIGINT, EXIT_SIGTERM

NOTICE = b"\nstopping where the run can go on; Ctrl-C again stops at once\n"
EXIT_CODES = {"SIGINT": EXIT_SIGINT, "SIGTERM": EXIT_SIGTERM}
_WEIGHTS = {"pause": 1, "cancel": 2}  # what a client asked for weighs more than a signal or the server's end


class StopSignal:
    """While entered, remembers the first signal instead of dying of it; a call gives its name, or None.

    The first SIGINT is told of on stderr by `notice`, since the next place to stop may be far. The second raises
    KeyboardInterrupt, a third ends the process whatever it does. `ask` is the same request from another thread;
    `asked`, if set, is called with it there.
    """

    def __init__(self, notice: bytes = NOTICE) -> None:
        self._notice = notice
        self._name: str | None = None
        self._interrupts = 0
        self._former: dict[int, object] = {}
        self.asked: Callable[[str], object] | None = None

    def __call__(self) -> str | None:
        return self._name

    def ask(self, name: str) -> None:
        """Ask to stop: `pause`, `cancel` or `server`. A weightier request takes the place of the one before."""
        if self._name is None or _WEIGHTS.get(name, 0) > _WEIGHTS.get(self._name, 0):
            self._name = name
            if (asked := self.asked) is not None:
                asked(name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._name = self._name or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 1:
                with suppress(OSError):  # past the streams: the signal may have come while one was written to
                    os.write(2, self._notice)
            if self._interrupts == 2:
                raise KeyboardInterrupt
            if self._interrupts > 2:
                os._exit(EXIT_SIGINT)

    def __enter__(self) -> StopSignal:
        for name in EXIT_CODES:
            number = signal.Signals[name]
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]
