"""Binds the mappings of a recipe that name plugins: finds the plugin, validates its config, checks its schedules."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from limbeck.errors import LimbeckError, Problem, nearest
from limbeck.interfaces import LossConfig, LossPlugin, Needs, PluginKind
from limbeck.plugins import Entry, Registry
from limbeck.recipe.bound import Bound, BoundLoss, Bounds, knob_bounds
from limbeck.recipe.document import Document, Path_, field_text
from limbeck.recipe.paths import Guard, Resolver
from limbeck.recipe.problems import problems_of, show, unknown_field

NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a loss or a teacher
NAME_RULE = "must be letters, digits, _ and -, not"
_GRID = [step / 1000 for step in range(1001)]


class Binder:
    """Binds what stands at a place of the document and gathers the problems.

    What has faults is bound without them where that can be done, so that the rules between parts can be checked too.
    """

    def __init__(self, document: Document, registry: Registry, guard: Guard | None = None) -> None:
        self._document = document
        self._registry = registry
        self.resolver = Resolver(document, guard)
        self.problems: list[Problem] = []

    def bind(self, kind: PluginKind, at: Path_) -> Bound | None:
        """A teacher, generator or scheduler."""
        entry = self._entry(kind, at)
        config = self._config(entry, at) if entry else None
        return Bound(entry, config, field_text(at)) if entry and config is not None else None

    def bind_teachers(self) -> dict[str, Bound]:
        """Every teacher of the recipe by name, without those that have faults; `teacher:` itself by its plugin's."""
        several, found = self._document.at(("teachers",)), {}
        for name in several if isinstance(several, dict) else ():
            at: Path_ = ("teachers", name)
            if not NAME.fullmatch(name):
                self.problems.append(self._document.problem(at, f"{NAME_RULE} {name!r}", key=True))
            if isinstance(several[name], dict) and (bound := self.bind("teacher", at)) is not None:
                found[name] = bound
        if isinstance(self._document.at(("teacher",)), dict) and (own := self.bind("teacher", ("teacher",))):
            names = (own.name, "teacher", "the-teacher")
            found = {next((name for name in names if name not in found), own.name): own, **found}
        return found

    def bind_loss(self, at: Path_) -> BoundLoss | None:
        """A loss, with its schedules."""
        entry = self._entry("loss", at)
        if entry is None:
            return None
        bounds = knob_bounds(entry.plugin.config)
        knobs: dict[str, float | Bound] = {}
        written = self._document.at(at)
        schedules = [field for field in bounds if isinstance(written.get(field), dict)]
        for field in schedules:
            scheduler = self.bind("scheduler", (*at, field))
            if scheduler is not None and self._check_schedule(scheduler, bounds[field], (*at, field)):
                knobs[field] = scheduler
        config = self._config(entry, at, skip=[(*at, field) for field in schedules])
        if config is None:
            return None
        assert isinstance(config, LossConfig)  # the loader saw to it
        name = config.name or entry.plugin.name
        if not NAME.fullmatch(name):
            self._fault((*at, "name"), f"{NAME_RULE} {name!r}")
        for field in bounds.keys() - set(schedules):
            knobs[field] = float(getattr(config, field))
        needs = self._needs(entry, config, at)
        if needs is None:
            return None
        knobs = {field: knobs[field] for field in bounds if field in knobs}
        return BoundLoss(name, entry, config, needs, field_text(at), knobs, bounds)

    def _fault(self, at: Path_, message: str, hint: str | None = None) -> None:
        self.problems.append(self._document.problem(at, message, hint))

    def _entry(self, kind: PluginKind, at: Path_) -> Entry | None:
        written = self._document.at(at)
        name = written.get("plugin") if isinstance(written, dict) else None
        if not isinstance(name, str):
            if isinstance(written, dict):
                self._no_name(kind, at, written)
            return None
        try:
            return self._registry.entry(kind, name)
        except LimbeckError as error:
            for problem in error.problems:
                self._fault((*at, "plugin"), problem.message, problem.hint)
            return None

    def _no_name(self, kind: PluginKind, at: Path_, written: dict[str, Any]) -> None:
        if "plugin" in written:
            if kind == "scheduler":  # of the others the schema has told it
                self._fault((*at, "plugin"), f"must be text, not {show(written['plugin'])}")
        elif meant := next((key for key in written if nearest(key, ["plugin"])), None):
            self.problems.append(unknown_field(self._document, (*at, meant), ["plugin"]))
        else:
            known = ", ".join(self._registry.names(kind))
            self._fault((*at, "plugin"), "is missing", f"name a {kind} plugin: {known}")

    def _config(self, entry: Entry, at: Path_, skip: list[Path_] | None = None) -> BaseModel | None:
        """The config, without the options that have faults. Those at places of `skip` (schedules) are told apart."""
        options = {key: value for key, value in self._document.at(at).items() if key != "plugin"}
        model = entry.plugin.config
        try:
            return model.model_validate(options, context=self.resolver.below(at))
        except ValidationError as error:
            self.problems += problems_of(error, self._document, at, model, skip or ())
            return self._without_faults(entry, at, options, error)
        except LimbeckError as error:
            for problem in error.problems or [Problem(error.message)]:
                self._fault(at, problem.message, problem.hint)
        except Exception as error:
            self._plugin_fault(entry, at, "config", error)
        return None

    def _without_faults(
        self, entry: Entry, at: Path_, options: dict[str, Any], error: ValidationError
    ) -> BaseModel | None:
        """The config of the options that `error` does not name. Tells what unknown fields alone have hidden so far."""
        faults = error.errors(include_url=False)
        bad = {details["loc"][0] for details in faults if details["loc"]}
        rest = {key: value for key, value in options.items() if key not in bad}
        model = entry.plugin.config
        try:
            return model.model_validate(rest, context=Resolver(self._document, self.resolver.guard).below(at))
        except ValidationError as hidden:
            if all(details["type"] == "extra_forbidden" for details in faults):
                self.problems += problems_of(hidden, self._document, at, model)
        except Exception:  # it has been told, or follows from what has
            return None
        return None

    def _needs(self, entry: Entry, config: Any, at: Path_) -> Needs | None:
        plugin = entry.plugin
        assert isinstance(plugin, LossPlugin)
        try:
            needs = plugin.needs(config)
            if not isinstance(needs, Needs):
                raise TypeError(f"needs(config) must return Needs, not {needs!r}")
        except Exception as error:
            self._plugin_fault(entry, at, "needs", error)
            return None
        return needs

    def _check_schedule(self, scheduler: Bound, bounds: Bounds, at: Path_) -> bool:
        """Every value must be in range: all of a step function's, else those of 1,001 points from start to end.

        Returns whether there are values.
        """
        try:
            made = scheduler.make()
            listed = made.values()
            values = list(listed) if listed is not None else [made.value(progress, {}) for progress in _GRID]
            faults = [(value, fault) for value in values if (fault := bounds.fault(float(value)))]
        except Exception as error:
            self._plugin_fault(scheduler.entry, at, "schedule", error)
            return False
        if faults:
            value, fault = faults[0]
            self._fault(at, f"every value {fault}, but this schedule gives {float(value):g}")
        return True

    def _plugin_fault(self, entry: Entry, at: Path_, what: str, error: Exception) -> None:
        owner = f"{entry.distribution} {entry.version}"
        self._fault(at, f"the {what} of {entry.plugin.name!r} ({owner}) raised {type(error).__name__}: {error}")


def step_values(knob: float | Bound) -> list[float] | None:
    """Every value of a knob where these are finitely many, else None."""
    if not isinstance(knob, Bound):
        return [knob]
    values = knob.make().values()
    return None if values is None else [float(value) for value in values]
