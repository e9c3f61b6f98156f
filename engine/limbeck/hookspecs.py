"""The five hooks: four registries, which yield frozen records, and one observer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from limbeck.interfaces import GeneratorPlugin, LossPlugin, SchedulerPlugin, TeacherPlugin

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event

ENTRY_POINT_GROUP = "limbeck.plugins"
hookspec = pluggy.HookspecMarker("limbeck")
hookimpl = pluggy.HookimplMarker("limbeck")


@hookspec
def limbeck_teachers() -> Iterable[TeacherPlugin]:
    """Yield the teacher backends that this distribution offers.

    Called once, at discovery. Import nothing heavy here: put torch, transformers and network code behind `factory`.

    Example::

        @hookimpl
        def limbeck_teachers():
            yield TeacherPlugin(name="acme", config=AcmeConfig, factory=make_acme, summary="Acme's API as a teacher.")
    """
    return ()


@hookspec
def limbeck_generators() -> Iterable[GeneratorPlugin]:
    """Yield the data generators that this distribution offers. Called once, at discovery.

    Example::

        @hookimpl
        def limbeck_generators():
            yield GeneratorPlugin(name="acme", config=AcmeConfig, factory=make_acme, summary="Acme's tickets as rows.")
    """
    return ()


@hookspec
def limbeck_losses() -> Iterable[LossPlugin]:
    """Yield the losses that this distribution offers. Called once, at discovery.

    Example::

        @hookimpl
        def limbeck_losses():
            yield LossPlugin(
                name="total_variation", kind="token", config=TokenLossConfig, needs=lambda config: Needs("top_k"),
                factory=make_total_variation, summary="Half of the absolute difference.",
            )
    """
    return ()


@hookspec
def limbeck_schedulers() -> Iterable[SchedulerPlugin]:
    """Yield the schedulers of knobs that this distribution offers. Called once, at discovery.

    Example::

        @hookimpl
        def limbeck_schedulers():
            yield SchedulerPlugin(name="sawtooth", config=SawtoothConfig, factory=Sawtooth, summary="Up, then back.")
    """
    return ()


@hookspec
def limbeck_event(event: Event) -> None:
    """Observe one event of a run (protos/limbeck/v1/event.proto).

    Called in the run's process, in order, off the training thread. An observer that raises is named, disabled for that
    run and stops nothing; one that is too slow loses its oldest events, which is counted and told.

    Example::

        @hookimpl
        def limbeck_event(event):
            if event.WhichOneof("kind") == "run_failed":
                page_somebody(event.run_failed.message)
    """
