"""The states of a run's process, as the history says them: one for each stage, and one for how it ended."""

from __future__ import annotations

import threading
from contextlib import suppress

from limbeck.errors import LimbeckError, Reason
from limbeck.runs.events import EventLog
from limbeck.runs.folder import LOG
from limbeck.signals.messages import error_message
from limbeck.v1 import event_pb2 as pb
from limbeck.v1.error_pb2 import Error
from limbeck.v1.event_pb2 import RunFailed, RunFinished, RunInterrupted, StateChanged

State = pb.RunState
OF_STAGE: dict[str, State] = {
    "generate": pb.RUN_STATE_GENERATING,
    "prepare": pb.RUN_STATE_PREPARING,
    "label": pb.RUN_STATE_LABELLING,
    "train": pb.RUN_STATE_TRAINING,
    "twin": pb.RUN_STATE_TRAINING,
    "evaluate": pb.RUN_STATE_EVALUATING,
    "report": pb.RUN_STATE_REPORTING,
}
# What a request to stop, or the name of a signal, makes of a run: at once, and in the end.
_STOPPING: dict[str, State] = {"cancel": pb.RUN_STATE_CANCELLING}
_STOPPED: dict[str, State] = {"cancel": pb.RUN_STATE_CANCELLED, "server": pb.RUN_STATE_QUEUED}

_MEND = "mend what they tell of; the run can then go on from its newest checkpoint"


class States:
    """Says each state once, from any thread. Stages that begin after a stop was asked for change nothing any more."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._state: State | None = None
        self._stopping: str | None = None
        self._over = False

    def enter(self, stage: str) -> None:
        """A stage begins, or is found done."""
        with self._lock:
            state = OF_STAGE.get(stage)
            if state is not None and self._stopping is None:
                self._say(state)

    def stopping(self, name: str) -> None:
        """A stop was asked for: `pause`, `cancel`, or `server`, which ends and goes on later; or a signal came.

        Never raises: a full disk is told by what is written next.
        """
        if self._stopping == name:  # the usual call, at each step
            return
        with self._lock:
            self._stopping = name
            if name != "server" and not self._over:
                with suppress(LimbeckError):
                    self._say(_STOPPING.get(name, pb.RUN_STATE_PAUSING))

    def close(self) -> None:
        """Say nothing more: the attempt's last events follow."""
        with self._lock:
            self._over = True

    def _say(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._log.emit(StateChanged(state=state))


Last = RunFinished | RunFailed | RunInterrupted


def last_state(last: Last, error: LimbeckError | None, said: str = "", *, whole: bool) -> StateChanged:
    """The attempt's last event, after `last`.

    `error`: of a RunFailed, and `said`: the last lines of the run's log. `whole`: whether all stages were asked for.
    """
    if isinstance(last, RunInterrupted):
        return StateChanged(state=_STOPPED.get(last.signal, pb.RUN_STATE_PAUSED))
    if isinstance(last, RunFailed):
        told = error_message(error or LimbeckError(Reason.INTERNAL))
        add_last_lines(told, said)
        return StateChanged(state=pb.RUN_STATE_FAILED, error=told)
    return StateChanged(state=pb.RUN_STATE_SUCCEEDED if whole else pb.RUN_STATE_PAUSED)


def add_last_lines(error: Error, said: str) -> None:
    """Add the last lines of a run's log, where there are any, to the error that it failed with.

    Uncut: it travels in answers and events, which have more room than the trailers of a call.
    """
    if said:
        hint = "" if any(problem.hint for problem in error.problems) else _MEND
        error.problems.add(message=f"the last lines of its log:\n{said}", field=LOG, hint=hint)
