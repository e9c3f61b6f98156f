"""What is asked of a training while it works: other values of its knobs from the next step on, a checkpoint now.

What was given to knobs stands in `knobs.jsonl` beside the checkpoints, and is given again by a resume, at the same
steps. Imports no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import AppendLog, fsync_folder, read_json_lines
from limbeck.v1.event_pb2 import Warning

if TYPE_CHECKING:
    from limbeck.training.job import EventSink
    from limbeck.training.knobs import Knobs

JOURNAL = "knobs.jsonl"
CheckpointId = str | int


@dataclass(frozen=True, slots=True)
class Steer:
    """Values by the names of knobs, in force from step `step` (optimizer steps finished) on, for good."""

    id: int
    step: int
    values: Mapping[str, float]


class Journal:
    """The steers of a training, in the order in which they came; a later one prevails. There is no file without any.

    Raises LOG_DAMAGED.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._log: AppendLog | None = None
        self.steers = [
            Steer(int(line["id"]), int(line["step"]), {name: float(value) for name, value in line["values"].items()})
            for _, line in read_json_lines(self._path)
        ]
        self._ids = {steer.id for steer in self.steers}

    def __contains__(self, number: int) -> bool:
        return number in self._ids

    def add(self, steer: Steer) -> str | None:
        """Write a steer, whole or not at all; it is on disk when this returns. Says what a crash had left to mend."""
        if self._log is None:
            is_new = not self._path.exists()
            self._log = AppendLog(self._path)
            if is_new:
                fsync_folder(self._path.parent)
        mended, self._log.repaired = self._log.repaired, None
        self._log.append({"id": steer.id, "step": steer.step, "values": dict(steer.values)})
        self.steers.append(steer)
        self._ids.add(steer.id)
        return mended

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._log is not None:
            self._log.close()


class Steering:
    """Requests to a training in this process, from any thread. Values wait until there is one; checkpoints do not.

    `applied(id)`: values are on disk and take effect with the next step, or a warning KNOB_REFUSED says why not; ids
    that are known already are only confirmed. `saved(id, path, step, bytes)` and `refused(id, error)` answer requests
    for checkpoints; the path is as in events. They are called in the training's thread, or in the caller's.
    """

    def __init__(
        self,
        *,
        applied: Callable[[int], object] = lambda number: None,
        saved: Callable[[CheckpointId, str, int, int], object] = lambda name, path, step, size: None,
        refused: Callable[[CheckpointId, LimbeckError], object] = lambda name, error: None,
    ) -> None:
        self.applied, self.saved, self._refused = applied, saved, refused
        self._lock = threading.Lock()
        self._values: list[tuple[int, dict[str, float]]] = []
        self._checkpoints: list[CheckpointId] = []
        self._open = False
        self._over: EventSink | None = None

    def put(self, number: int, values: Mapping[str, float]) -> None:
        """Give knobs other values from the next optimizer step on: all of them, or none where one is refused."""
        with self._lock:
            over = self._over
            if over is None:
                self._values.append((number, dict(values)))
        if over is not None:
            self._too_late(number, values, over)

    def request_checkpoint(self, name: CheckpointId) -> None:
        """Save a checkpoint after the step under way. RUN_STATE, by `refused`, where nothing is trained."""
        with self._lock:
            is_open = self._open
            if is_open:
                self._checkpoints.append(name)
        if not is_open:
            self._refuse(name)

    # ------------------------------------------------------------------------------------------ the training's side

    def begin(self) -> None:
        """A training begins: checkpoints can be asked for."""
        self._open = True

    def finish(self, sink: EventSink) -> None:
        """There is nothing left to train: what waits, and what comes yet, is refused."""
        with self._lock:
            self._open, self._over = False, sink
            values, self._values = self._values, []
            checkpoints, self._checkpoints = self._checkpoints, []
        for number, asked in values:
            self._too_late(number, asked, sink)
        for name in checkpoints:
            self._refuse(name)

    def take_checkpoints(self) -> list[CheckpointId]:
        """The checkpoints that are asked for: the training answers them by `saved`."""
        with self._lock:
            taken, self._checkpoints = self._checkpoints, []
        return taken

    def steer(self, step: int, knobs: Knobs, journal: Journal, emit: Callable[[Any], object]) -> list[int]:
        """Journal the values that wait, and hand them to `knobs` for step `step`. Returns the ids to confirm.

        Raises DISK_FULL before anything takes effect that is not on disk.
        """
        with self._lock:
            waiting, self._values = self._values, []
        for number, values in waiting:
            if number in journal:
                continue
            if faults := knobs.faults(values):
                emit(refusal(values, faults))
                continue
            steer = Steer(number, step, values)
            if mended := journal.add(steer):
                emit(Warning(reason="LOG_MENDED", message=mended))
            knobs.steer(steer)
        return [number for number, _ in waiting]

    def _too_late(self, number: int, values: Mapping[str, float], sink: EventSink) -> None:
        with suppress(Exception):  # the history is closed, or the disk is full: the run is over, or tells of it
            sink.emit(refusal(values, ["the training is over"]))
        self.applied(number)

    def _refuse(self, name: CheckpointId) -> None:
        problem = Problem("nothing is trained at present", hint="checkpoints are of the training of the student")
        self._refused(name, LimbeckError(Reason.RUN_STATE, problems=[problem]))


def refusal(values: Mapping[str, float], faults: list[str]) -> Any:
    """The warning of values that take no effect."""
    named = ", ".join(f"{name} {value:g}" for name, value in sorted(values.items()))
    return Warning(reason="KNOB_REFUSED", message=f"not changed to {named}: {'; '.join(faults)}")
