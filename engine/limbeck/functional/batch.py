"""What a batch's kept tokens are, and what the teacher says about each, as tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """The teacher on k ids per kept token.

    `ids` int64 [n, k], distinct in a row; an id below 0 is padding. `at`: temperature to (`on_support` [n, k], `tail`
    [n]), log-probabilities of the ids and of all others together. `counts` [n, k] for draws. `said` bool [n]: the
    tokens of which the teacher said anything, None for all; no loss on this answer sees the others.
    """

    ids: Tensor
    at: Mapping[float, tuple[Tensor, Tensor]]
    counts: Tensor | None = None
    said: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of_logits(cls, logits: Tensor, top_k: int, temperatures: Sequence[float] = (1.0,)) -> Answer:
        """The `top_k` answer of a teacher's logits [n, v], with tails by logsumexp over the complement."""
        top = logits.topk(min(top_k, logits.shape[1]), dim=1)
        ids = top.indices.masked_fill(top.values == -torch.inf, -1)  # an impossible id is no outcome
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        at = {}
        for temperature in temperatures:
            logprobs = torch.log_softmax(wide / temperature, dim=1)
            on_support = logprobs.gather(1, top.indices)
            at[temperature] = (on_support, logprobs.scatter(1, top.indices, -torch.inf).logsumexp(1))
        return cls(ids, at)


@dataclass(frozen=True)
class SignalBatch:
    """The kept tokens of a batch, flat. n tokens, r rows.

    `labels` int64 [n]: the actual tokens. `answers` by primitive: `top_k`, `token_ids`, `samples`, `target`. `full`
    [n, v]: the teacher's log-probabilities at temperature 1. `hidden`: the teacher's layer to [n, d]. `weights_n` [n]:
    what each token's losses are multiplied by, None for 1; a token of weight 0 is as if it were not kept.
    `batch_n`, `time_n` [n]: where a token's prediction is read in the student's hidden states [batch, time].
    `row_n` [n], `offsets_n2` [n, 2], `pair_r`, `chosen_r` [r]: see :class:`limbeck.interfaces.SequenceBatch`.
    `places` [r]: (file, line) of each row. `saturated`: entries whose code hit its limit.
    """

    labels: Tensor
    answers: Mapping[str, Answer] = field(default_factory=dict)
    full: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    batch_n: Tensor | None = None
    time_n: Tensor | None = None
    row_n: Tensor | None = None
    offsets_n2: Tensor | None = None
    pair_r: Tensor | None = None
    chosen_r: Tensor | None = None
    places: Sequence[tuple[str, int]] = ()
    saturated: int = 0
    weights_n: Tensor | None = None

    @classmethod
    def of_labels(cls, labels: Tensor, *, ignore: int = -100, **fields: Any) -> SignalBatch:
        """From labels int64 [batch, time] as Hugging Face has them: not shifted, `ignore` where nothing is trained.

        `fields`: others of this class, [n, …] in the order of ``labels[:, 1:][labels[:, 1:] != ignore]``.
        """
        kept = labels[:, 1:] != ignore
        batch_n, time_n = kept.nonzero(as_tuple=True)
        return cls(labels[:, 1:][kept], batch_n=batch_n, time_n=time_n, **fields)

    @property
    def n(self) -> int:
        """Kept tokens."""
        return int(self.labels.shape[0])

    @property
    def counts(self) -> dict[str, float]:
        """This batch's own tokens, rows and pairs: what a sum is divided by where nothing is accumulated.

        Tokens count by their weights.
        """
        pairs = 0 if self.pair_r is None or not self.pair_r.numel() else int(self.pair_r.max()) + 1
        tokens = self.n if self.weights_n is None else float(self.weights_n.double().sum())
        return {"tokens": tokens, "rows": self.rows, "pairs": pairs}

    @property
    def rows(self) -> int:
        """Rows in the batch, 0 where it does not say."""
        return len(self.places) if self.pair_r is None else int(self.pair_r.shape[0])

    def select(self, hidden: Tensor) -> Tensor:
        """The hidden states [n, d] of the kept tokens, from the student's [batch, time, d].

        What stands elsewhere, NaN included, changes neither value nor gradient.
        """
        return hidden[self.batch_n, self.time_n]

    def to(self, device: torch.device | str, **options: Any) -> SignalBatch:
        """The same on another device."""
        return _moved(self, device, options)  # type: ignore[no-any-return]


def _moved(value: Any, device: torch.device | str, options: dict[str, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, **options)
    if isinstance(value, Mapping):
        return {key: _moved(item, device, options) for key, item in value.items()}
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        return tuple(_moved(item, device, options) for item in value)
    if isinstance(value, SignalBatch | Answer):
        moved = {f.name: _moved(getattr(value, f.name), device, options) for f in dataclasses.fields(value)}
        return type(value)(**moved)
    return value
