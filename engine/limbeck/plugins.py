"""Finds plugins by entry points, each on its own: one that is broken is kept with its error and harms no other.

A plugin is taken whole or not at all. pluggy supplies the markers and checks names and arguments of hooks; the loader
is ours, since pluggy's stops at the first broken entry point.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, DistributionFinder, EntryPoint
from typing import TYPE_CHECKING, Any, get_args

import pluggy

from limbeck import hookspecs
from limbeck.errors import LimbeckError, Problem, Reason, nearest
from limbeck.interfaces import (
    Config,
    GeneratorPlugin,
    LossConfig,
    LossKind,
    LossPlugin,
    Plugin,
    PluginKind,
    SchedulerPlugin,
    TeacherPlugin,
)

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

Observer = Callable[["Event"], object]
HOOKS: dict[str, tuple[PluginKind, type[Plugin]]] = {
    "limbeck_teachers": ("teacher", TeacherPlugin),
    "limbeck_generators": ("generator", GeneratorPlugin),
    "limbeck_losses": ("loss", LossPlugin),
    "limbeck_schedulers": ("scheduler", SchedulerPlugin),
}
OBSERVER_HOOK = "limbeck_event"
NAME = re.compile(r"[a-z][a-z0-9_-]*")  # goes into `losses.NAME.FIELD`, so no dots
# Teachers of Limbeck's own other distributions, so that who names one that is not installed is told what to install.
COMPANIONS = {
    "echo": "limbeck-echo",
    "echo-text": "limbeck-echo",
    "openai": "limbeck-openai",
    "vllm": "limbeck-vllm",
    "vllm-server": "limbeck-vllm",
}
MOST_RECORDS = 1000  # of one hook: a generator that never ends must not hang every command


@dataclass(frozen=True, slots=True)
class Entry:
    """A plugin that was found, and who brought it."""

    plugin: Plugin
    kind: PluginKind
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry point that could not be used, and why."""

    entry_point: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point}): {self.error}"


@dataclass(frozen=True, slots=True)
class Registry:
    """Everything that is installed: plugins, observers, and what could not be used."""

    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    observers: tuple[tuple[str, Observer], ...] = ()

    def names(self, kind: PluginKind) -> list[str]:
        """Names of a kind, sorted, each once."""
        return sorted({entry.plugin.name for entry in self.entries if entry.kind == kind})

    def claims(self, kind: PluginKind, name: str) -> list[Entry]:
        """Every entry that claims a name; more than one is a clash."""
        return [entry for entry in self.entries if entry.kind == kind and entry.plugin.name == name]

    def clashes(self) -> list[str]:
        """One sentence for each name that is claimed more than once."""
        keys = dict.fromkeys((entry.kind, entry.plugin.name) for entry in self.entries)
        return [_clash(kind, name, claims) for kind, name in keys if len(claims := self.claims(kind, name)) > 1]

    def get(self, kind: PluginKind, name: str) -> Plugin:
        """The plugin of a name.

        Raises PLUGIN_UNKNOWN with the known names and every failed plugin, PLUGIN_INVALID where two claim the name.
        """
        return self.entry(kind, name).plugin

    def entry(self, kind: PluginKind, name: str) -> Entry:
        """Like :meth:`get`, with the distribution."""
        claims = self.claims(kind, name)
        if len(claims) == 1:
            return claims[0]
        if claims:
            hint = "uninstall one of them, or ask their authors to rename theirs"
            raise LimbeckError(Reason.PLUGIN_INVALID, problems=[Problem(_clash(kind, name, claims), hint=hint)])
        problems = [Problem(f"no {kind} plugin is called {name!r}", hint=self._advice(kind, name))]
        problems += [Problem(f"this plugin could not be used: {failure}") for failure in self.failures]
        raise LimbeckError(Reason.PLUGIN_UNKNOWN, problems=problems)

    def _advice(self, kind: PluginKind, name: str) -> str:
        known = self.names(kind)
        guess = nearest(name, known)
        elsewhere = sorted(entry.kind for entry in self.entries if entry.plugin.name == name)
        if kind == "teacher" and name in COMPANIONS:
            return f"it comes with {COMPANIONS[name]}: pip install {COMPANIONS[name]}"
        parts = [f"did you mean {guess!r}?"] if guess else []
        parts += [f"{name!r} is a {elsewhere[0]}"] if elsewhere else []
        parts.append(f"known: {', '.join(known) or 'none'}")
        return "; ".join(parts)


def _clash(kind: str, name: str, claims: list[Entry]) -> str:
    owners = " and ".join(f"{entry.distribution} {entry.version}" for entry in claims)
    return f"the {kind} name {name!r} is claimed by {owners}"


def load_plugins() -> Registry:
    """Find and load every plugin that is installed. Reads the disk anew on each call; raises nothing."""
    entries: list[Entry] = []
    failures: list[Failure] = []
    observers: list[tuple[str, Observer]] = []
    for distribution, point, fault in _entry_points():
        name, version = _identity(distribution)
        try:
            if fault is not None:
                raise fault
            records, watching = _load(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin that calls sys.exit() must not end the command
            failures.append(Failure(point.name, name, version, _describe(error)))
            continue
        entries += [Entry(record, kind, name, version) for kind, record in records]
        observers += [(f"{name}:{point.name}", call) for call in watching]
    return Registry(tuple(entries), tuple(failures), tuple(observers))


def _entry_points() -> Iterator[tuple[Distribution, EntryPoint, Exception | None]]:
    """Entry points of our group. Of a distribution found twice the first on the path counts, as for imports."""
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        for distribution in _distributions(folder or "."):
            try:
                text = distribution.read_text("entry_points.txt") or ""
            except Exception:  # a neighbour that nobody can read says nothing about plugins
                continue
            if hookspecs.ENTRY_POINT_GROUP not in text:
                continue
            key = re.sub(r"[-_.]+", "-", _identity(distribution)[0]).lower()
            if key in seen:
                continue
            seen.add(key)
            try:
                points = list(distribution.entry_points.select(group=hookspecs.ENTRY_POINT_GROUP))
            except Exception as error:
                point = EntryPoint("entry_points.txt", "", hookspecs.ENTRY_POINT_GROUP)
                yield distribution, point, error
                continue
            for point in points:
                yield distribution, point, None


def _distributions(folder: str) -> Iterator[Distribution]:
    """Every distribution of a folder, by each finder: one that breaks hides nothing but its own."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_distributions", None)
        if find is not None:
            with suppress(Exception):
                yield from list(find(DistributionFinder.Context(path=[folder])))


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version, whatever state the metadata is in."""
    try:
        metadata = distribution.metadata
        found = [(metadata.get_all(key) or [None])[0] for key in ("Name", "Version")]  # [key] will raise where none is
        return str(found[0] or "unknown"), str(found[1] or "unknown")
    except Exception:
        return "unknown", "unknown"


def _load(point: EntryPoint) -> tuple[list[tuple[PluginKind, Plugin]], list[Observer]]:
    """Import one entry point and drain its hooks. Raises whatever the plugin raises, ValueError for a broken rule."""
    plugin = point.load()
    manager = pluggy.PluginManager("limbeck")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, point.name)
    _check_hook_names(plugin, manager)
    records: list[tuple[PluginKind, Plugin]] = []
    for hook, (kind, record_type) in HOOKS.items():
        for call in _implementations(manager, hook):
            records += [(kind, record) for record in _drain(hook, record_type, call)]
    names = [(kind, record.name) for kind, record in records]
    for kind, name in names:
        if names.count((kind, name)) > 1:
            raise ValueError(f"yields the {kind} name {name!r} twice")
    observers = _implementations(manager, OBSERVER_HOOK)
    if not records and not observers:
        raise ValueError(f"offers nothing: implement one of {', '.join((*HOOKS, OBSERVER_HOOK))} with @hookimpl")
    return records, observers


def _check_hook_names(plugin: object, manager: pluggy.PluginManager) -> None:
    """Refuse a misspelt hook, and a hook without its marker: either would be ignored in silence."""
    known = (*HOOKS, OBSERVER_HOOK)
    implemented = {
        impl.function.__name__
        for hook in vars(manager.hook).values()
        for impl in getattr(hook, "get_hookimpls", list)()
    }
    for name in dir(plugin):
        value = getattr(plugin, name, None)
        marked = callable(value) and hasattr(value, "limbeck_impl")
        if not callable(value) or not (name.startswith("limbeck_") or marked):
            continue
        options = getattr(value, "limbeck_impl", None)
        hook = (options or {}).get("specname") or name
        if hook not in known:
            guess = nearest(hook, known)
            advice = f"did you mean {guess}?" if guess else f"hooks are {', '.join(known)}"
            raise ValueError(f"{name} is no hook of Limbeck: {advice}")
        if not marked and name not in implemented:
            raise ValueError(f"{name} lacks its @hookimpl marker (from limbeck.hookspecs import hookimpl)")


def _implementations(manager: pluggy.PluginManager, hook: str) -> list[Callable[..., Any]]:
    calls = []
    for impl in getattr(manager.hook, hook).get_hookimpls():
        if impl.wrapper or impl.hookwrapper:
            raise ValueError(f"{hook} is a hook wrapper, which Limbeck does not call")
        if hook == OBSERVER_HOOK and not impl.argnames:
            raise ValueError(f"{hook} must take the argument `event`")
        calls.append(impl.function)
    return calls


def _drain(hook: str, record_type: type[Plugin], call: Callable[[], Any]) -> list[Plugin]:
    result = call()
    try:
        iterator = iter(result)
    except TypeError:
        raise ValueError(f"{hook} must yield {record_type.__name__} records, but returned {result!r}") from None
    records: list[Plugin] = []
    for record in iterator:
        if len(records) == MOST_RECORDS:
            raise ValueError(f"{hook} yields more than {MOST_RECORDS} records; does it ever end?")
        _check_record(hook, record_type, record)
        records.append(record)
    return records


def _check_record(hook: str, record_type: type[Plugin], record: Any) -> None:
    wanted = record_type.__name__
    if not isinstance(record, record_type):
        raise ValueError(f"{hook} must yield {wanted} records, but yielded {record!r}")
    if not isinstance(record.name, str) or not NAME.fullmatch(record.name):
        raise ValueError(f"{wanted} name {record.name!r} must be small letters, digits, _ or -, a letter first")
    label = f"{wanted} {record.name!r}"
    base = LossConfig if record_type is LossPlugin else Config
    if not (isinstance(record.config, type) and issubclass(record.config, base)):
        raise ValueError(f"{label}: config must be a subclass of {base.__name__}, not {record.config!r}")
    if any((field.alias or name) == "plugin" for name, field in record.config.model_fields.items()):
        raise ValueError(f"{label}: a config cannot have the field `plugin`, which names the plugin in a recipe")
    if not callable(record.factory):
        raise ValueError(f"{label}: factory must be callable, not {record.factory!r}")
    if not isinstance(record.summary, str) or not record.summary.strip():
        raise ValueError(f"{label}: summary must be a sentence, not {record.summary!r}")
    if isinstance(record, LossPlugin):
        if record.kind not in get_args(LossKind):
            raise ValueError(f"{label}: kind must be one of {', '.join(get_args(LossKind))}, not {record.kind!r}")
        if not callable(record.needs):
            raise ValueError(f"{label}: needs must be a function of the config, not {record.needs!r}")


def _describe(error: BaseException) -> str:
    """One line for a person: type, text, and the line of the plugin that raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _foreign(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be shown)"
    kind = "" if type(error) is ValueError and not frames else f"{type(error).__name__}: "
    return f"{kind}{text}{place}"


def _foreign(filename: str) -> bool:
    return filename != __file__ and "importlib" not in filename and "pluggy" not in filename
