"""The history of a run: one event a line in events.jsonl, the same to observers and to whoever watches here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from limbeck.files import AppendLog, read_json_lines
from limbeck.runs.observers import DRAIN_SECONDS, QUEUE_LENGTH, Observers
from limbeck.v1.event_pb2 import Event, Warning

KINDS = {
    field.message_type.name: field.name
    for field in Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    if field.message_type is not None
}
EVENTS = "events.jsonl"
_FREQUENT = {"progress", "metrics"}  # enough that they survive the process; all others survive a power cut


def to_json(event: Event) -> str:
    """The event's JSON mapping on one line: names as in the .proto, 64-bit integers and NaN as strings."""
    return MessageToJson(event, preserving_proto_field_name=True, indent=None, ensure_ascii=False)


def append_event(folder: Path, run_id: str, message: Any, time: Timestamp | None = None) -> Event:
    """Append one event to the history of the run in `folder`, outside of an attempt; it is on disk when this returns.

    `time`: when it happened, where that was not now. For whoever holds the folder while no attempt is at work. Reads
    the whole history. Raises LOG_DAMAGED, DISK_FULL.
    """
    with EventLog(folder / EVENTS, run_id, begins=False) as log:
        return log.emit(message, time=time)


def read_events(path: Path) -> Iterator[Event]:
    """The events of an events.jsonl, also while it is being written. Raises LOG_DAMAGED."""
    for _, line in read_json_lines(path):
        yield ParseDict(line, Event(), ignore_unknown_fields=True)


class EventLog:
    """Appends a run's events; `emit` may be called from any thread.

    Opening it begins an attempt: sequence numbers go on where the file ends, the attempt is one more than its last;
    the same without `begins`, for what is said between two.
    `display`, if given, is called with each event in the emitting thread: it must be quick and must not raise.
    """

    def __init__(
        self,
        path: Path,
        run_id: str,
        *,
        observers: Sequence[tuple[str, Callable[[Event], object]]] = (),
        display: Callable[[Event], object] | None = None,
        queue_length: int = QUEUE_LENGTH,
        begins: bool = True,
    ) -> None:
        self.path = path
        self._log = AppendLog(path)
        last = self._log.last or {}
        self.sequence = int(last.get("sequence", 0))
        self.attempt = int(last.get("attempt", 0)) + begins
        self.stage = ""
        self._run_id = run_id
        self._step = 0
        self._display = display
        self._lock = threading.RLock()
        self._observers = Observers(observers, queue_length)
        held = self._log.count
        if held != self.sequence:
            gap = f"{path.name} holds {held} events, but its last one is number {self.sequence}: some were lost"
            self.warn("HISTORY_GAP", gap)
        if self._log.repaired:
            self.warn("LOG_MENDED", self._log.repaired)

    def begin_stage(self, name: str) -> None:
        """Say in each event from now on that it belongs to stage `name` ("" for none)."""
        self.stage, self._step = name, 0

    def emit(self, message: Any, *, step: int | None = None, time: Timestamp | None = None) -> Event:
        """Append a message of one of Event's kinds, of now or of `time`; `step` stays in force for the stage."""
        with self._lock:
            if step is not None:
                self._step = step
            event = Event(
                sequence=self.sequence + 1,
                attempt=self.attempt,
                step=self._step,
                run_id=self._run_id,
                stage=self.stage,
                **{KINDS[message.DESCRIPTOR.name]: message},
            )
            if time is None:
                event.time.GetCurrentTime()
            else:
                event.time.CopyFrom(time)
            self._log.append(to_json(event), sync=event.WhichOneof("kind") not in _FREQUENT)
            self.sequence += 1
            self._observers.put(event)
            if self._display is not None:
                self._display(event)
            for fault in self._observers.faults():
                self.emit(fault)
            return event

    def warn(self, reason: str, message: str) -> None:
        """Say something that a person should know; the run goes on."""
        self.emit(Warning(reason=reason, message=message))

    def finish(self, *messages: Any) -> None:
        """Append the attempt's last events and close. Observers get a bounded time for what they have not seen."""
        self.begin_stage("")
        for fault in self._observers.drain(DRAIN_SECONDS):
            self.emit(fault)
        for message in messages:
            self.emit(message)
        self._observers.drain(DRAIN_SECONDS)
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._log.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
