"""What libraries and plugins say in a run's process, by Python's logging and warnings, becomes events of kind `log`."""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from limbeck.v1.event_pb2 import Log

MOST = 200  # texts of an attempt
MOST_OF_A_PLACE = 5  # different texts of one line of code
MOST_CHARACTERS = 2000
MOST_WAITING = 1000
_PATIENCE = 5.0  # seconds for what waits at the end
_WARNINGS = "py.warnings"  # name of the logger that logging.captureWarnings has


class Said(NamedTuple):
    """A text, who said it, and the line of code that did."""

    level: str
    logger: str
    text: str
    place: tuple[str, int]


class Overheard:
    """Emits what is put in, on a thread of its own: who warns may hold any lock, or be in the middle of an event.

    Each text once; of one line of code the first texts only, and so many in all, the last of which says so.
    """

    def __init__(self, emit: Callable[[Any], object]) -> None:
        self._emit = emit
        self._queue: queue.SimpleQueue[Said | None] = queue.SimpleQueue()  # may be put to while it is put to
        self._known: set[tuple[str, str, str]] = set()
        self._places: Counter[tuple[str, int]] = Counter()
        self._thread = threading.Thread(target=self._work, name="overheard", daemon=True)
        self._thread.start()

    def put(self, said: Said) -> None:
        """Never waits, never raises."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(said)

    def close(self) -> None:
        """Emit what waits."""
        self._queue.put(None)
        self._thread.join(_PATIENCE)

    def _work(self) -> None:
        while (said := self._queue.get()) is not None:
            key = (said.level, said.logger, said.text)
            if key in self._known or len(self._known) >= MOST or self._places[said.place] >= MOST_OF_A_PLACE:
                continue
            self._known.add(key)
            self._places[said.place] += 1
            self._tell(said)
            if len(self._known) == MOST:
                text = f"{MOST} messages of this attempt were noted; more are not"
                self._tell(Said("WARNING", __name__, text, ("", 0)))

    def _tell(self, said: Said) -> None:
        with suppress(Exception):  # a full disk, or the history is closed: the run tells of it
            self._emit(Log(level=said.level, logger=said.logger, message=said.text))


@contextmanager
def overhearing(emit: Callable[[Any], object]) -> Iterator[None]:
    """While entered, records of level WARNING or above and warnings are emitted, too; where they went, they still go.

    A record is taken when it is made, so that loggers which do not hand theirs on are heard as well.
    """
    overheard = Overheard(emit)
    make, show = logging.getLogRecordFactory(), warnings.showwarning
    listening = True

    def heard_record(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        if listening and record.levelno >= logging.WARNING:
            level = "WARNING" if record.levelno < logging.ERROR else "ERROR"
            level = "CRITICAL" if record.levelno >= logging.CRITICAL else level
            overheard.put(Said(level, record.name, _cut(_text(record)), (record.pathname, record.lineno)))
        return record

    def heard_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        show(message, category, filename, lineno, file, line)
        if listening and file is None:
            text = f"{category.__name__}: {message}"
            overheard.put(Said("WARNING", _WARNINGS, _cut(text), (filename, lineno)))

    logging.setLogRecordFactory(heard_record)
    warnings.showwarning = heard_warning
    try:
        yield
    finally:
        listening = False  # also where somebody else has put one of theirs before ours
        if logging.getLogRecordFactory() is heard_record:
            logging.setLogRecordFactory(make)
        if warnings.showwarning is heard_warning:
            warnings.showwarning = show
        overheard.close()


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: logging itself tells of it on stderr
        return str(record.msg)


def _cut(text: str) -> str:
    """Without what UTF-8 has no bytes for, and not too long."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
