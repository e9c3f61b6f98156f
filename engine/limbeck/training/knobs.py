"""Knobs: the numbers of the losses in force at each optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError, Problem, Reason, working
from limbeck.functional import Values
from limbeck.interfaces import Scheduler
from limbeck.steering import Steer

if TYPE_CHECKING:
    from limbeck.recipe import BoundLoss


@dataclass(frozen=True, slots=True)
class Change:
    """A knob took another value from step `step` (optimizer steps finished) on."""

    step: int
    knob: str
    before: float
    after: float


class Knobs:
    """The value of every knob of `losses` as a function of progress = step / max_steps.

    `temperatures`: those that the stored signals hold, None for a teacher that is asked each step. A knob is named
    ``losses.NAME.FIELD``. State is JSON: the values in force and the schedulers' states; steers are the journal's.
    """

    def __init__(
        self, losses: Sequence[BoundLoss], max_steps: int, temperatures: Sequence[float] | None = None
    ) -> None:
        self._losses = losses
        self._max_steps = max_steps
        self._temperatures = None if temperatures is None else tuple(temperatures)
        self._schedulers: dict[str, Scheduler] = {}
        self._fixed: dict[str, float] = {}
        self._steers: list[Steer] = []
        self.in_force: dict[str, float] = {}
        for loss in losses:
            for field, knob in loss.knobs.items():
                name = _name(loss, field)
                if isinstance(knob, int | float):
                    self._fixed[name] = float(knob)
                else:
                    self._schedulers[name] = knob.make()

    def faults(self, values: Mapping[str, float]) -> list[str]:
        """Why knobs cannot take these values; empty where they can."""
        known = {_name(loss, field): (loss, field) for loss in self._losses for field in loss.knobs}
        faults = []
        for name, value in values.items():
            if name not in known:
                faults.append(f"{name} is no knob; knobs are {', '.join(known)}")
                continue
            try:
                self._check(*known[name], value)
            except LimbeckError as error:
                faults += [f"{name}: {problem.message}" for problem in error.problems]
        return faults

    def steer(self, steer: Steer) -> None:
        """Let values prevail over the recipe's, and over those of earlier steers, from their step on."""
        self._steers.append(steer)

    def advance(self, step: int, metrics: Mapping[str, float]) -> list[Change]:
        """Put the values of the step after `step` finished ones in force; what changed by it, or was given just now.

        Raises KNOB_INVALID where a scheduler leaves its knob's range or the temperatures that are stored.
        """
        progress = step / self._max_steps if self._max_steps else 0.0
        now = dict(self._fixed)
        for name, scheduler in self._schedulers.items():
            with working(f"in the schedule of {name}"):
                now[name] = float(scheduler.value(progress, metrics))
        before = now | self.in_force
        given: set[str] = set()
        for steer in self._steers:
            if steer.step <= step:
                now |= steer.values
                given |= steer.values.keys() if steer.step == step else set()
        for loss in self._losses:
            for field in loss.knobs:
                self._check(loss, field, now[_name(loss, field)])
        changes = [
            Change(step, name, before[name], value)
            for name, value in now.items()
            if name in given or (name in self.in_force and self.in_force[name] != value)
        ]
        self.in_force = now
        return changes

    def values(self) -> dict[str, Values]:
        """The values in force, by loss, as the head takes them."""
        return {
            loss.name: Values.of({field: self.in_force[_name(loss, field)] for field in loss.knobs})
            for loss in self._losses
        }

    def temperatures(self) -> tuple[float, ...]:
        """Temperatures in force, ascending; 1.0 where no loss has one."""
        found = {self.in_force[_name(loss, "temperature")] for loss in self._losses if "temperature" in loss.knobs}
        return tuple(sorted(found or {1.0}))

    def state_dict(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        schedulers = {name: scheduler.state_dict() for name, scheduler in self._schedulers.items()}
        return {"in_force": self.in_force, "schedulers": schedulers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Knobs that are new in a changed recipe start afresh."""
        self.in_force = {name: float(value) for name, value in state["in_force"].items()}
        for name, scheduler in self._schedulers.items():
            if name in state["schedulers"]:
                scheduler.load_state_dict(state["schedulers"][name])

    def _check(self, loss: BoundLoss, field: str, value: float) -> None:
        loss.check_knob(field, value)
        stored = self._temperatures
        if field != "temperature" or stored is None or loss.needs.primitive != "top_k" or value in stored:
            return
        text = f"temperature {value:g} is not stored; stored are {', '.join(f'{t:g}' for t in stored)}"
        hint = "use a step function (`piecewise`) whose values are known beforehand, or `signals: {source: online}`"
        problem = Problem(text, field=f"{loss.field}.temperature", hint=hint)
        raise LimbeckError(Reason.KNOB_INVALID, problems=[problem])


def _name(loss: BoundLoss, field: str) -> str:
    return f"losses.{loss.name}.{field}"
