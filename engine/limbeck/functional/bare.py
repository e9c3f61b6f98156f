"""For training loops of one's own: terms from plain mappings, and the loss of a batch in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.functional.batch import SignalBatch
from limbeck.functional.head import Head
from limbeck.functional.loss import head_loss
from limbeck.functional.output import LossOutput
from limbeck.functional.projection import CHUNK_BYTES
from limbeck.functional.terms import Term, Values
from limbeck.interfaces import KnobMark, LossConfig, LossContext, LossPlugin
from limbeck.plugins import load_plugins


def make_terms(losses: Sequence[Mapping[str, Any]], context: LossContext) -> tuple[tuple[Term, ...], dict[str, Values]]:
    """Terms and their knobs from mappings as a recipe's `losses:` has them, every installed plugin by name.

    ``[{"plugin": "forward_kl", "weight": 0.9, "temperature": 2.0}, …]``. Knobs are numbers here: change them by giving
    :func:`distill_loss` other :class:`Values`. Raises RECIPE_INVALID with every problem, PLUGIN_UNKNOWN.
    """
    registry = load_plugins()
    terms: list[Term] = []
    values: dict[str, Values] = {}
    problems: list[Problem] = []
    for number, given in enumerate(losses):
        place = f"losses[{number}]"
        options = dict(given)
        plugin = registry.get("loss", str(options.pop("plugin", "")))
        assert isinstance(plugin, LossPlugin)
        try:
            config = plugin.config.model_validate(options)
        except ValidationError as error:
            problems += [
                Problem(fault["msg"], field=".".join([place, *map(str, fault["loc"])])) for fault in error.errors()
            ]
            continue
        knobs = knobs_of(config)
        scheduled = [name for name, value in knobs.items() if not isinstance(value, int | float)]
        problems += [
            Problem("a schedule needs the engine; give a number", field=f"{place}.{name}") for name in scheduled
        ]
        name = config.name or plugin.name
        if name in values:
            problems.append(Problem(f"two losses are called {name!r}; give each a `name`", field=f"{place}.name"))
        if not scheduled:
            values[name] = Values.of(knobs)
            terms.append(Term.of(plugin, config, context))
    if problems:
        raise LimbeckError(Reason.RECIPE_INVALID, "The losses are not valid.", problems)
    return tuple(terms), values


def knobs_of(config: LossConfig) -> dict[str, Any]:
    """The fields of a loss's config that may be scheduled, with what stands there."""
    marked = (name for name, field in type(config).model_fields.items() if _is_knob(field.metadata))
    return {name: getattr(config, name) for name in marked}


def _is_knob(metadata: Sequence[Any]) -> bool:
    return any(isinstance(mark, KnobMark) for mark in metadata)


def distill_loss(
    hidden: Tensor,
    head: Head,
    batch: SignalBatch,
    terms: Sequence[Term],
    values: Mapping[str, Values],
    denominators: Mapping[str, float] | None = None,
    *,
    features: Mapping[int, Tensor] | None = None,
    teacher_head: Head | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossOutput:
    """:func:`head_loss` of whole hidden states, checked.

    `hidden` [batch, time, d] or, the kept tokens only, [n, d]; `features` likewise, by layer. Raises LOSS_NOT_FINITE,
    naming rows and tokens, before anything is trained on such a loss.
    """
    output = head_loss(
        _kept(hidden, batch),
        head,
        batch,
        terms,
        values,
        denominators,
        features={layer: _kept(states, batch) for layer, states in (features or {}).items()},
        teacher_head=teacher_head,
        chunk_bytes=chunk_bytes,
    )
    output.check(batch)
    return output


def _kept(hidden: Tensor, batch: SignalBatch) -> Tensor:
    return batch.select(hidden) if hidden.dim() == 3 else hidden
