"""The built-in plugins, which register through the same hooks as everybody's."""

from __future__ import annotations

from collections.abc import Iterable

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import GeneratorPlugin, LossPlugin, SchedulerPlugin, TeacherPlugin


@hookimpl
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """The built-in teachers."""
    from limbeck.teachers import PLUGINS

    return PLUGINS


@hookimpl
def limbeck_generators() -> Iterable[GeneratorPlugin]:
    """The built-in data generators."""
    from limbeck import generators

    return getattr(generators, "PLUGINS", ())


@hookimpl
def limbeck_losses() -> Iterable[LossPlugin]:
    """The built-in losses."""
    from limbeck.losses import PLUGINS

    return PLUGINS


@hookimpl
def limbeck_schedulers() -> Iterable[SchedulerPlugin]:
    """The built-in schedulers of knobs."""
    from limbeck.schedulers import PLUGINS

    return PLUGINS
