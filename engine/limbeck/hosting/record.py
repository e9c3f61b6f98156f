"""A run as the server knows it: what its history says, what was asked of it, and what works on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb

if TYPE_CHECKING:
    from limbeck.hosting.history import History
    from limbeck.hosting.process import RunProcess

WAITING = frozenset({ev.RUN_STATE_CREATED, ev.RUN_STATE_VALIDATING, ev.RUN_STATE_QUEUED})
STAGES = frozenset(
    {
        ev.RUN_STATE_GENERATING,
        ev.RUN_STATE_PREPARING,
        ev.RUN_STATE_LABELLING,
        ev.RUN_STATE_TRAINING,
        ev.RUN_STATE_EVALUATING,
        ev.RUN_STATE_REPORTING,
    }
)
WORKING = STAGES | {ev.RUN_STATE_PAUSING, ev.RUN_STATE_CANCELLING}
ENDED = frozenset({ev.RUN_STATE_SUCCEEDED, ev.RUN_STATE_CANCELLED, ev.RUN_STATE_FAILED})
_KNOBS = "knobs."  # prefix of a knob's metric


def name_of(state: ev.RunState) -> str:
    """A state as people write it: `training`."""
    return ev.RunState.Name(state).removeprefix("RUN_STATE_").lower()


@dataclass(eq=False)
class Record:
    """A run of the index. Belongs to the server's event loop.

    `run` and `states` follow the history up to byte `offset` of events.jsonl. `want`: "pause" or "cancel" that was
    asked of a process and is not done. `mark`: of the process that works on it, also after the server that started it
    has died. `turn`: its place in the queue. `unsaid`: events that could not be written to the history yet.
    """

    number: int
    request_id: str
    run: pb.Run
    states: pb.GetRunResponse = field(default_factory=pb.GetRunResponse)
    offset: int = 0
    want: str = ""
    mark: str = ""
    checked: bool = False
    turn: int = 0
    size: int = 0  # bytes of its folder, once it has ended
    expired: bool = False  # its folder is not kept any more
    removed: bool = False  # nor is any of it left
    unsaid: pb.Events = field(default_factory=pb.Events)

    # what lives only as long as the server
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None  # works on it
    looking: bool = False  # that only looks at its recipe
    process: RunProcess | None = None
    late: asyncio.TimerHandle | None = None  # kills the process where it does not stop
    killed: bool = False  # by that
    history: History | None = None
    saving: dict[int, asyncio.Future[pb.Checkpoint]] = field(default_factory=dict)  # checkpoints asked for
    dirty: bool = False  # the index is behind
    damaged: bool = False  # its history could not be read when that was tried last; the log tells it
    not_before: float = 0.0  # a start that failed since another process works there is tried again then

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.run.run_id

    @property
    def state(self) -> ev.RunState:
        """Its state."""
        return self.run.state

    def apply(self, event: ev.Event) -> None:
        """Take in the next event of its history."""
        run, kind = self.run, event.WhichOneof("kind")
        run.last_sequence, run.attempt = event.sequence, event.attempt
        if kind == "state_changed":
            change = event.state_changed
            self.enter(change.state, event.time, change.error if change.HasField("error") else None)
        elif kind == "progress":
            run.progress.CopyFrom(event.progress)
        elif kind == "stage_started":
            begun = event.stage_started
            run.progress.CopyFrom(ev.Progress(done=begun.done, total=begun.total, unit=begun.unit))
        elif kind == "stage_finished" and not event.stage_finished.skipped:  # past one that was skipped it goes on
            run.ClearField("progress")
        elif kind == "rewound":
            if run.progress.unit == "steps":
                run.progress.done = event.rewound.to_step
            else:  # a later stage's
                run.ClearField("progress")
        elif kind == "metrics" and event.stage != "twin":  # its figures have the student's names
            for name, value in event.metrics.values.items():
                run.metrics[name] = value
            if event.stage == "train":
                knobs = {n.removeprefix(_KNOBS): v for n, v in event.metrics.values.items() if n.startswith(_KNOBS)}
                set_knobs(run, knobs)
        elif kind == "knob_changed" and event.stage == "train":
            set_knobs(run, {event.knob_changed.knob: event.knob_changed.after})

    def enter(self, state: ev.RunState, time: Timestamp, error: Any = None) -> None:
        """Be in another state since `time`."""
        self.run.state = state
        self.run.since.CopyFrom(time)
        self.run.ClearField("error")
        if error is not None:
            self.run.error.CopyFrom(error)
        if state == ev.RUN_STATE_SUCCEEDED:
            self.run.ClearField("progress")
        self.states.states.add(state=self.run.state, time=time)


def set_knobs(run: pb.Run, values: Mapping[str, float]) -> None:
    """Give the knobs of these names these values."""
    for knob in run.knobs:
        if knob.name in values:
            knob.value = values[knob.name]


def now() -> Timestamp:
    """The time."""
    time = Timestamp()
    time.GetCurrentTime()
    return time
