"""What becomes of a run whose process has ended, however it ended."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.hosting.channel import Ending
from limbeck.hosting.record import ENDED, Record
from limbeck.v1 import event_pb2 as ev
from limbeck.v1 import training_service_pb2 as pb
from limbeck.v1.error_pb2 import Error

GO_ON = "resume it: it goes on from its newest checkpoint"


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: its last word, None where it had none, and why the run fails where that is what it does.

    `server`: it ended since its server does, or did.
    """

    word: Ending | None
    error: Error
    server: bool = False


def outcome(record: Record, end: End) -> tuple[ev.RunState, Error | None] | None:
    """The state that is to follow the one that the history tells last, with its error; None where none is."""
    state, want, killed = record.state, record.want, record.killed
    if state in ENDED:  # also where something else was asked: it was too late
        return None
    if want == "cancel":
        return ev.RUN_STATE_CANCELLED, None
    if state == ev.RUN_STATE_PAUSED:
        return None
    if end.word == "failed":
        return ev.RUN_STATE_FAILED, end.error
    if want == "pause" and (killed or end.server or end.word == "interrupted"):
        return ev.RUN_STATE_PAUSED, None
    if end.server and record.run.restart == pb.RESTART_POLICY_FAIL:
        return ev.RUN_STATE_FAILED, end.error
    if end.server:
        return None if state == ev.RUN_STATE_QUEUED else (ev.RUN_STATE_QUEUED, None)
    if end.word == "interrupted":  # by a signal from elsewhere
        return ev.RUN_STATE_PAUSED, None
    if end.word == "succeeded":
        return ev.RUN_STATE_SUCCEEDED, None
    return ev.RUN_STATE_FAILED, end.error
