"""What a server says of runs, their files and its plugins, as records that a program prints and type-checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, cast, get_args

from google.protobuf.timestamp_pb2 import Timestamp

from limbeck.client.errors import in_file, own_place
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.messages import error_of, problem_of
from limbeck.v1 import event_pb2
from limbeck.v1 import plugin_service_pb2 as plugin_pb
from limbeck.v1 import training_service_pb2 as pb

RunState = Literal[
    "created",
    "validating",
    "queued",
    "generating",
    "preparing",
    "labelling",
    "training",
    "evaluating",
    "reporting",
    "succeeded",
    "pausing",
    "paused",
    "cancelling",
    "cancelled",
    "failed",
]
STATES: tuple[RunState, ...] = get_args(RunState)
ENDED: frozenset[RunState] = frozenset(("succeeded", "failed", "cancelled"))
RestartPolicy = Literal["resume", "fail"]
RESTARTS: tuple[RestartPolicy, ...] = get_args(RestartPolicy)
Request = TypeVar("Request")
PluginKind = Literal["teacher", "generator", "loss", "scheduler"]


@dataclass(frozen=True, slots=True)
class Knob:
    """A number of a loss that can be changed while a run trains.

    `value`: in force; before the training the one that it begins with, None for a schedule that has not begun. Allowed
    is what lies within `at_least`, `above` (not itself), `at_most` and `below` (not itself), each None where there is
    no such limit; or, where there are some, only one of `values`. `scheduled`: a schedule of the recipe moves it.
    """

    name: str
    value: float | None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    values: tuple[float, ...] = ()
    scheduled: bool = False


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far the stage at work is, or was; `total` is 0 where it is not known. `unit`: rows, tokens, steps."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a server.

    `output`: its folder, relative to the server's workspace. `owner`: name of the token that created it. `since`: when
    `state` began; times are UTC. `error`: why it failed. `queue_position`: from 1, 0 where it does not wait. `attempt`:
    starts so far. `last_sequence`: of its last event; `oldest_sequence`: of the oldest that can still be watched.
    `metrics`: its latest figures. `restart`: what becomes of it when the server ends while it works.
    """

    run_id: str
    output: str
    state: RunState
    since: datetime
    created: datetime
    owner: str = ""
    error: LimbeckError | None = None
    queue_position: int = 0
    attempt: int = 0
    last_sequence: int = 0
    oldest_sequence: int = 0
    progress: RunProgress | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    knobs: tuple[Knob, ...] = ()
    restart: RestartPolicy = "resume"

    @property
    def ended(self) -> bool:
        """Whether it succeeded, failed or was cancelled: nothing more happens by itself."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class StateTime:
    """A state and when it began, UTC."""

    state: RunState
    time: datetime


@dataclass(frozen=True, slots=True)
class RunDetails(Run):
    """A run with its `recipe` as it was given, and every state that it was in, in order."""

    recipe: str = ""
    states: tuple[StateTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint. `path`: its folder, relative to the run's. `step`: optimizer steps finished."""

    path: str
    step: int
    bytes: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a run. `path`: relative to the run's folder. `size` in bytes.

    `sha256`: of its content, hex; None while the run may still change it.
    """

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Validation:
    """What is to be said of a recipe.

    `error`: why it cannot be run, with every problem and its place; None where it can. `warnings`: what a person should
    know. `resolved`: the recipe with every default, paths relative to the server's workspace; empty where it has
    problems. `facts`: what was found of rows, models, disk and memory.
    """

    error: LimbeckError | None
    warnings: tuple[Problem, ...]
    resolved: Mapping[str, Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RemotePlugin:
    """A plugin of a server. `config_schema`: JSON Schema (draft 2020-12) of its config, to draw a form from."""

    name: str
    kind: PluginKind
    distribution: str
    version: str
    summary: str
    config_schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """What could not be loaded, and why. `source`: the distribution or entry point that it came with."""

    source: str
    error: str


@dataclass(frozen=True, slots=True)
class Plugins:
    """What is installed at a server. `recipe_schema`: JSON Schema of a whole recipe with these plugins."""

    plugins: tuple[RemotePlugin, ...]
    failed: tuple[FailedPlugin, ...]
    recipe_schema: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------- messages


def state_of(number: int) -> RunState:
    """A state by its number. Raises INTERNAL for one that is not known here."""
    try:
        name = event_pb2.RunState.Name(cast("event_pb2.RunState", number)).removeprefix("RUN_STATE_").lower()
    except ValueError:
        name = ""
    if name not in STATES:
        raise not_understood(f"the state of a run is {number}, which is not known here")
    return name


def state_number(state: RunState) -> int:
    """The inverse of :func:`state_of`. Raises REQUEST_INVALID for a name that is none."""
    if state not in STATES:
        problem = Problem(f"{state!r} is no state of a run, allowed are {', '.join(STATES)}", field="states")
        raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem])
    return int(event_pb2.RunState.Value(f"RUN_STATE_{state.upper()}"))


def restart_number(restart: RestartPolicy) -> int:
    """A policy as it is sent. Raises REQUEST_INVALID for a name that is none."""
    if restart not in RESTARTS:
        problem = Problem(f"is {restart!r}, allowed are {' and '.join(RESTARTS)}", field="restart")
        raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem])
    return int(pb.RestartPolicy.Value(f"RESTART_POLICY_{restart.upper()}"))


def run_of(message: pb.Run) -> Run:
    """A run."""
    return Run(**_run_fields(message))


def details_of(message: pb.GetRunResponse) -> RunDetails:
    """A run with its recipe and its states."""
    states = tuple(StateTime(state_of(one.state), time_of(one.time)) for one in message.states)
    return RunDetails(**_run_fields(message.run), recipe=message.recipe, states=states)


def _run_fields(message: pb.Run) -> dict[str, Any]:
    progress = message.progress
    return {
        "run_id": message.run_id,
        "output": message.output,
        "state": state_of(message.state),
        "since": time_of(message.since),
        "created": time_of(message.created),
        "owner": message.owner,
        "error": error_of(message.error) if message.HasField("error") else None,
        "queue_position": int(message.queue_position),
        "attempt": int(message.attempt),
        "last_sequence": int(message.last_sequence),
        "oldest_sequence": int(message.oldest_sequence),
        "progress": RunProgress(int(progress.done), int(progress.total), progress.unit)
        if message.HasField("progress")
        else None,
        "metrics": dict(message.metrics),
        "knobs": tuple(_knob(knob) for knob in message.knobs),
        "restart": "fail" if message.restart == pb.RESTART_POLICY_FAIL else "resume",
    }


def _knob(message: pb.Knob) -> Knob:
    limits = {
        name: getattr(message, name) if message.HasField(name) else None
        for name in ("value", "at_least", "above", "at_most", "below")
    }
    return Knob(message.name, values=tuple(message.values), scheduled=message.scheduled, **limits)


def checkpoint_of(message: pb.Checkpoint) -> Checkpoint:
    """A checkpoint."""
    return Checkpoint(message.path, int(message.step), int(message.bytes), time_of(message.time))


def artifact_of(message: pb.Artifact) -> Artifact:
    """A file."""
    return Artifact(message.path, int(message.size), bytes(message.sha256).hex() or None)


def validation_of(message: pb.ValidateRecipeResponse, file: str | None) -> Validation:
    """What is to be said of a recipe; `file` is where the caller has it."""
    error = error_of(message.error) if message.HasField("error") else None
    warnings = tuple(map(problem_of, message.warnings))
    if file is not None:
        error = error and in_file(error, file)
        warnings = tuple(own_place(one, file) for one in warnings)
    return Validation(error, warnings, json_of(message.resolved, "resolved"), json_of(message.facts, "facts"))


_KINDS: dict[int, PluginKind] = {
    plugin_pb.Plugin.KIND_TEACHER: "teacher",
    plugin_pb.Plugin.KIND_GENERATOR: "generator",
    plugin_pb.Plugin.KIND_LOSS: "loss",
    plugin_pb.Plugin.KIND_SCHEDULER: "scheduler",
}


def plugins_of(message: plugin_pb.ListPluginsResponse) -> Plugins:
    """What is installed. Kinds that are not known here are left out."""
    return Plugins(
        tuple(
            RemotePlugin(
                one.name,
                _KINDS[one.kind],
                one.distribution,
                one.version,
                one.summary,
                json_of(one.config_schema, f"schema of {one.name}"),
            )
            for one in message.plugins
            if one.kind in _KINDS
        ),
        tuple(FailedPlugin(one.source, one.error) for one in message.failed),
        json_of(message.recipe_schema, "recipe_schema"),
    )


def time_of(message: Timestamp) -> datetime:
    """A time, UTC."""
    return message.ToDatetime(tzinfo=UTC)


def asked(kind: type[Request], **fields: Any) -> Request:
    """A request. Raises REQUEST_INVALID for values that it cannot hold."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        problem = Problem(f"{', '.join(fields)} cannot be sent like this: {error}")
        raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem]) from None


def json_of(text: str, name: str) -> dict[str, Any]:
    """A JSON object; {} for an empty text. Raises INTERNAL for what is none."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise not_understood(f"{name} is no JSON object")
    return value


def not_understood(message: str) -> LimbeckError:
    """A server that says what cannot be."""
    return LimbeckError(Reason.INTERNAL, "The server sent what this client does not understand.", [Problem(message)])
