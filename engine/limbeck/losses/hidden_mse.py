"""Mean squared error of hidden states, through a trained projection where widths differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.interfaces import LossContext, Needs


class HiddenMse(nn.Module):
    """Mean over the layer pairs of mean_d (W·h_student − h_teacher)² per token (FitNets, Romero et al., 2015).

    W is a linear layer without bias for each pair; none (the identity) where the widths are equal.
    """

    def __init__(self, needs: Needs, layers: Sequence[Sequence[int]], context: LossContext) -> None:
        super().__init__()
        self.needs = needs
        self.layers = [(student, teacher) for student, teacher in layers]
        student_d, teacher_d = context.student_hidden_size, context.teacher_hidden_size or context.student_hidden_size
        self.projections = nn.ModuleList(
            nn.Identity() if student_d == teacher_d else nn.Linear(student_d, teacher_d, bias=False) for _ in layers
        )

    def forward(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], knobs: Mapping[str, float]
    ) -> Tensor:
        errors = []
        for (student_layer, teacher_layer), projection in zip(self.layers, self.projections, strict=True):
            hidden = student[student_layer]
            width = projection.weight.dtype if isinstance(projection, nn.Linear) else torch.float32
            hidden = hidden.to(torch.promote_types(hidden.dtype, width))
            errors.append((projection(hidden) - teacher[teacher_layer].to(hidden.dtype)).square().mean(-1))
        return torch.stack(errors).mean(0)
