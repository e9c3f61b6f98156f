"""What the head's loss gives back, and the error where it is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.functional.batch import SignalBatch

_NAMED = 20  # rows that an error names, and tokens of each


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch and its figures; all but `loss` are detached sums, ready to be added up.

    `loss` = Σ over the terms of weight · T² · sum / denominator. `sums`: term to its sum, T² in it, weight not.
    `diagnostics`: `tokens`, `saturated` and, where a term compares distributions, `compared`, the tokens that the
    first such term looks at, with the sums over these of `teacher_mass` and `student_mass` on its support at its
    temperature, and of `top1_agreement`; none of them is weighted.
    `not_finite`: term to [n], the tokens whose loss is not finite.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor]
    not_finite: Mapping[str, Tensor]

    def check(self, batch: SignalBatch) -> None:
        """Raise LOSS_NOT_FINITE, naming rows and tokens, where a term is not finite. Waits for the device."""
        check_finite(self.not_finite, batch)
        if not torch.isfinite(self.loss):  # each is finite, their sum is not
            raise LimbeckError(
                Reason.LOSS_NOT_FINITE, f"The loss is {float(self.loss)}, though each token's is finite."
            )


def check_finite(not_finite: Mapping[str, Tensor], batch: SignalBatch) -> None:
    """Raise LOSS_NOT_FINITE where a token of `not_finite` is marked. See :class:`LossOutput`.

    Terms that are not finite at the same tokens are one problem. So is a whole batch: it is the student's, no row's.
    """
    alike: list[tuple[list[str], Tensor]] = []
    for name, bad in not_finite.items():
        if bad.any():
            names = next((names for names, other in alike if torch.equal(other, bad)), None)
            if names is None:
                alike.append(([name], bad))
            else:
                names.append(name)
    problems = [problem for names, bad in alike for problem in _problems(names, bad, batch)]
    if problems:
        raise LimbeckError(Reason.LOSS_NOT_FINITE, problems=list(dict.fromkeys(problems)))


def _problems(names: list[str], bad: Tensor, batch: SignalBatch) -> list[Problem]:
    hint = (
        "a divergence is infinite where one side gives mass to what the other calls impossible (`tail: renormalise` "
        "leaves the tail out); a NaN comes from the student's weights: lower the learning rate"
    )
    field = f"losses.{names[0]}"
    what = "not finite" if len(names) == 1 else f"{', '.join(names)}: not finite"
    tokens = bad.nonzero()[:, 0]
    if batch.row_n is None:
        shown = ", ".join(str(token) for token in tokens[:_NAMED].tolist())
        return [Problem(f"{what} at {len(tokens)} kept tokens: {shown}", field=field, hint=hint)]
    rows = batch.row_n[tokens]
    marked = sorted(set(rows.tolist()))
    if len(marked) > 1 and bad.all():
        return [Problem(f"{what} at any of the {len(tokens)} tokens of {len(marked)} rows", field=field, hint=hint)]
    problems = []
    for row in marked[:_NAMED]:
        mine = tokens[rows == row]
        time = batch.time_n[mine] if batch.time_n is not None else mine
        shown = ", ".join(str(position) for position in time[:_NAMED].tolist())
        file, line = batch.places[row]
        text = f"{what} at {len(mine)} tokens, predicted at positions {shown}"
        problems.append(Problem(text, file=file, line=line, field=field, hint=hint))
    return problems
