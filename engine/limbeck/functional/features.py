"""Feature losses: named layers of student and teacher, by plain autograd."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.functional.batch import SignalBatch
from limbeck.functional.terms import Term, Values


def feature_values(
    term: Term, values: Values, features: Mapping[int, Tensor], batch: SignalBatch, rows: Tensor | None = None
) -> Tensor:
    """The term's loss per kept token [n], differentiable in `features` and in the loss's parameters.

    `features`: the student's layer to [n, d]. `rows` [m]: of these tokens only, [m]. Raises CAPABILITY_MISSING where a
    layer of either side is not there.
    """
    student = _layers(term, term.needs.student_layers, features, "student")
    teacher = _layers(term, term.needs.teacher_layers, batch.hidden, "teacher")
    if rows is not None:
        student = {layer: states[rows] for layer, states in student.items()}
        teacher = {layer: states[rows] for layer, states in teacher.items()}
    with torch.autocast(batch.labels.device.type, enabled=False):
        return term.ask(batch.n if rows is None else len(rows), student, teacher, values.knobs)


def _layers(term: Term, layers: tuple[int, ...], given: Mapping[int, Tensor], whose: str) -> dict[int, Tensor]:
    missing = [layer for layer in layers if layer not in given]
    if missing:
        text = f"the hidden states of the {whose}'s layers {missing} are not there; there are {sorted(given) or 'none'}"
        raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field=f"losses.{term.name}")])
    return {layer: given[layer] for layer in layers}
