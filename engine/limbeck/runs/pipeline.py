"""A run from its recipe to its report: which stages it has, and what becomes of errors and signals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import limbeck
from limbeck.errors import LimbeckError, Problem, Reason, sayable, unexpected
from limbeck.files import disk_errors
from limbeck.runs.changes import refuse_changes
from limbeck.runs.contents import Contents
from limbeck.runs.desk import TeacherDesk
from limbeck.runs.evaluate import Evaluate
from limbeck.runs.events import EventLog
from limbeck.runs.folder import RunFolder, check_folder
from limbeck.runs.generate import Generate
from limbeck.runs.label import Label
from limbeck.runs.overheard import overhearing
from limbeck.runs.prepare import Prepare
from limbeck.runs.said import said_logprobs
from limbeck.runs.stage import Interrupted, Run, Stage, execute, plan
from limbeck.runs.states import States, last_state
from limbeck.runs.stopping import StopSignal
from limbeck.runs.train import Train, Twin
from limbeck.runs.write import Report
from limbeck.v1.event_pb2 import (
    Event,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StateChanged,
    TeacherStarting,
)

if TYPE_CHECKING:
    from limbeck.plugins import Registry
    from limbeck.recipe import Recipe
    from limbeck.steering import Steering


def stages_of(recipe: Recipe, until: str | None = None) -> list[Stage]:
    """The stages of a recipe, in order, up to and with the stage `until`. Raises CAPABILITY_MISSING without that."""
    stages: list[Stage] = [Generate()] if recipe.generator is not None else []
    stages.append(Prepare())
    if recipe.teacher is not None:
        stages.append(Label())
    stages.append(Train())
    if recipe.evaluation.twin:
        stages.append(Twin())
    stages += [Evaluate(), Report()]
    names = [stage.name for stage in stages]
    if until is None:
        return stages
    if until not in names:
        problem = Problem(f"this recipe has no stage {until}", str(recipe.path), field="teacher", hint="add teacher:")
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
    return stages[: names.index(until) + 1]


def run_recipe(
    recipe: Recipe,
    registry: Registry,
    *,
    display: Callable[[Event], object] | None = None,
    stop: Callable[[], str | None] | None = None,
    resume: bool = False,
    allow_changed: bool = False,
    until: str | None = None,
    steering: Steering | None = None,
    said: Callable[[BaseException], str] | None = None,
) -> Path:
    """Run what is not done yet, up to and with the stage `until`; returns the run's folder.

    Everything that can be known before is checked first, all problems at once, with nothing written. `resume` refuses
    a recipe that is not the folder's, naming each difference, unless `allow_changed`. `stop` gives the name of a signal
    as soon as one came: what is needed to go on is then saved, and Interrupted raised. `steering` is what is asked of
    the training while it works. `said` gives, of a run that fails with an error, the last lines of its log.
    """
    from limbeck.runs.preflight import check

    stages, contents = stages_of(recipe, until), Contents(recipe)
    with recipe.placing():
        if resume:
            check_folder(recipe.output)
            refuse_changes(recipe, allow_changed=allow_changed)
        warnings: list[Problem] = []
        if not _all_done(recipe, stages, contents):
            found = check(recipe, registry, contents)
            found.raise_problems()
            warnings = found.warnings
        _refuse_labels(recipe, contents, until)
    with (
        recipe.placing(),
        RunFolder(recipe.output) as folder,
        EventLog(folder.events, folder.run_id, observers=registry.observers, display=display) as log,
    ):
        folder.record(recipe.path, recipe.text, recipe.resolved())
        log.emit(RunStarted(limbeck_version=limbeck.__version__, recipe_digest=recipe.digest))
        for warning in warnings:
            log.warn("PREFLIGHT", str(warning))
        states = States(log)
        if isinstance(stop, StopSignal):
            stop.asked = states.stopping

        def asked() -> str | None:
            name = stop() if stop is not None else None
            if name is not None:
                states.stopping(name)
            return name

        with TeacherDesk(recipe, lambda phase: log.emit(TeacherStarting(phase=phase)), lambda: _check(asked)) as desk:
            run = Run(recipe, contents, folder.path, log, desk, asked, allow_changed, steering, states.enter)
            _attempt(run, stages, states, said, whole=until is None)
    return folder.path


def _attempt(
    run: Run, stages: list[Stage], states: States, said: Callable[[BaseException], str] | None, *, whole: bool
) -> None:
    """Work on the stages, and say how that ended, whatever happens."""
    last: Any = None
    fault: LimbeckError | None = None
    lines = ""
    start = time.monotonic()
    try:
        with disk_errors(run.path), overhearing(run.log.emit):
            steps = plan(run.path, stages, run.contents)
            if run.steering is not None and any(step.done for step in steps if step.stage.name == Train.name):
                run.steering.finish(run.log)
            execute(run, steps)
        last = RunFinished(seconds=time.monotonic() - start)
    except Interrupted as interrupted:
        interrupted.signal = run.stop() or interrupted.signal  # a weightier request may have come since
        last = RunInterrupted(signal=interrupted.signal)
        raise
    except KeyboardInterrupt:
        last = RunInterrupted(signal="SIGINT")
        raise
    except BaseException as error:
        fault = unexpected(error)
        last = RunFailed(reason=fault.reason, message=sayable(str(fault)))
        lines = said(error) if said is not None else ""
        raise
    finally:
        states.close()
        _finish(run.log, last, last_state(last, fault, lines, whole=whole))


def _check(asked: Callable[[], str | None]) -> None:
    """Raise Interrupted where a signal came."""
    signal = asked()
    if signal is not None:
        raise Interrupted(signal)


def _refuse_labels(recipe: Recipe, contents: Contents, until: str | None) -> None:
    """Raise CAPABILITY_MISSING where signals are asked for of a teacher that gives none."""
    if until == "label" and contents.text_teacher is not None and not said_logprobs(recipe, contents.text_teacher):
        message = f"{contents.text_teacher.name} answers with text: there are no signals to capture"
        problem = Problem(
            message, str(recipe.path), field="teacher", hint=f"train on its text: limbeck run {recipe.path}"
        )
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])


def _all_done(recipe: Recipe, stages: list[Stage], contents: Contents) -> bool:
    try:
        return all(step.done for step in plan(recipe.output, stages, contents))
    except (
        LimbeckError,
        OSError,
    ):  # an input or the folder cannot be read: the pre-flight tells of it, and of the rest
        return False


def _finish(log: EventLog, last: Any, state: StateChanged) -> None:
    """Say how the attempt ended. On a full disk the history ends earlier, and the first error is the one to tell."""
    try:
        log.finish(last, state)
    except (LimbeckError, OSError):
        if isinstance(last, RunFinished):
            raise
