"""A loss, a scheduler and an observer for Limbeck. Nothing heavy is imported until one of them is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from limbeck.hookspecs import hookimpl
from limbeck.interfaces import Loss, LossContext, LossPlugin, Needs, SchedulerPlugin, TokenLossConfig
from limbeck_example.sawtooth import Sawtooth, SawtoothConfig

if TYPE_CHECKING:
    from limbeck.v1.event_pb2 import Event


def _needs(config: TokenLossConfig) -> Needs:
    return Needs("top_k")


def _total_variation(config: TokenLossConfig, context: LossContext) -> Loss:
    from limbeck_example.total_variation import TotalVariation

    return TotalVariation()


TOTAL_VARIATION = LossPlugin(
    name="total_variation",
    kind="token",
    config=TokenLossConfig,
    needs=_needs,
    factory=_total_variation,
    summary="Half of the summed absolute difference of the two distributions.",
)
SAWTOOTH = SchedulerPlugin(
    name="sawtooth", config=SawtoothConfig, factory=Sawtooth, summary="Rises in steps, falls back, rises again."
)


@hookimpl
def limbeck_losses() -> Iterable[LossPlugin]:
    """One loss."""
    yield TOTAL_VARIATION


@hookimpl
def limbeck_schedulers() -> Iterable[SchedulerPlugin]:
    """One scheduler."""
    yield SAWTOOTH


@hookimpl
def limbeck_event(event: Event) -> None:
    """Append each finished stage to the file that LIMBECK_EXAMPLE_LOG names, one JSON object a line."""
    path = os.environ.get("LIMBECK_EXAMPLE_LOG")
    if path and event.WhichOneof("kind") == "stage_finished":
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"sequence": event.sequence, "stage": event.stage}) + "\n")
