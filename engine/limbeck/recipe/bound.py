"""Plugins of a recipe with their validated configs."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import (
    GeneratorPlugin,
    KnobMark,
    LossKind,
    LossPlugin,
    Needs,
    Plugin,
    SchedulerPlugin,
    TeacherPlugin,
)
from limbeck.plugins import Entry


@dataclass(frozen=True)
class Bound:
    """A teacher, generator or scheduler that a recipe names. Paths in `config` are absolute."""

    entry: Entry
    config: Any
    field: str

    @property
    def plugin(self) -> Plugin:
        """The plugin's record."""
        return self.entry.plugin

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.plugin.name

    def make(self) -> Any:
        """A new Teacher, Generator or Scheduler. Losses are made by the training, which knows their context."""
        plugin = self.plugin
        assert isinstance(plugin, TeacherPlugin | GeneratorPlugin | SchedulerPlugin)
        return plugin.factory(self.config)

    def dump(self) -> dict[str, Any]:
        """`{plugin: NAME, …config}` with every default, as it would stand in a recipe."""
        return {"plugin": self.name, **dump(self.config)}


@dataclass(frozen=True)
class Bounds:
    """The allowed range of a knob; None is open."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def fault(self, value: float) -> str | None:
        """What is wrong with `value`, None for nothing. NaN and infinities are outside of every range."""
        if not float("-inf") < value < float("inf"):
            return "must be finite"
        for bound, word, good in (
            (self.gt, "above", self.gt is None or value > self.gt),
            (self.ge, "at least", self.ge is None or value >= self.ge),
            (self.lt, "below", self.lt is None or value < self.lt),
            (self.le, "at most", self.le is None or value <= self.le),
        ):
            if not good:
                return f"must be {word} {bound:g}"
        return None


@dataclass(frozen=True)
class BoundLoss:
    """A loss of a recipe. A knob is a number, or a scheduler (a Bound)."""

    name: str
    entry: Entry
    config: Any
    needs: Needs
    field: str
    knobs: dict[str, float | Bound] = dataclass_field(default_factory=dict)
    bounds: dict[str, Bounds] = dataclass_field(default_factory=dict)

    @property
    def plugin(self) -> LossPlugin:
        """The loss's record."""
        assert isinstance(self.entry.plugin, LossPlugin)
        return self.entry.plugin

    @property
    def kind(self) -> LossKind:
        """token, sequence or feature."""
        return self.plugin.kind

    def check_knob(self, field: str, value: float) -> None:
        """Raise KNOB_INVALID for a value outside of the knob's range."""
        if fault := self.bounds[field].fault(value):
            problem = Problem(f"{fault}, but became {value:g}", field=f"losses.{self.name}.{field}")
            raise LimbeckError(Reason.KNOB_INVALID, problems=[problem])

    def dump(self) -> dict[str, Any]:
        """`{plugin: NAME, …config}` with every default, as it would stand in a recipe."""
        knobs = {key: value.dump() if isinstance(value, Bound) else value for key, value in self.knobs.items()}
        return {"plugin": self.plugin.name, **dump(self.config), "name": self.name, **knobs}


def dump(model: BaseModel) -> dict[str, Any]:
    """A config as JSON values; what is empty is left out."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def knob_bounds(config: type[BaseModel]) -> dict[str, Bounds]:
    """The range of each knob of a config, by field."""
    return {name: _bounds(field) for name, field in config.model_fields.items() if _is_knob(field)}


def _is_knob(field: FieldInfo) -> bool:
    return any(isinstance(mark, KnobMark) for mark in field.metadata)


def _bounds(field: FieldInfo) -> Bounds:
    found: dict[str, Any] = {}
    for mark in field.metadata:
        for kind, name in ((Gt, "gt"), (Ge, "ge"), (Lt, "lt"), (Le, "le")):
            if isinstance(mark, kind):
                found[name] = getattr(mark, name)
    return Bounds(**found)
