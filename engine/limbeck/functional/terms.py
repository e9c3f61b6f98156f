"""Terms of a sum of losses: what each is, its values in force, and the teacher's side of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, Problem, Reason, working
from limbeck.functional.batch import Answer, SignalBatch
from limbeck.functional.head import Head
from limbeck.functional.softmax import split_vocabulary
from limbeck.interfaces import Loss, LossConfig, LossContext, LossKind, LossPlugin, Needs, Support, TailPolicy
from limbeck.losses.numerics import NEVER, logsumexp

if TYPE_CHECKING:
    from limbeck.recipe import BoundLoss


@dataclass(frozen=True)
class Term:
    """One loss with its fixed options. What may change from step to step is in :class:`Values`."""

    name: str
    kind: LossKind
    loss: Loss
    needs: Needs
    tail: TailPolicy = "bucket"
    top_k: int | None = None
    temperature_squared: bool = False

    @classmethod
    def of(cls, plugin: LossPlugin, config: LossConfig, context: LossContext, name: str | None = None) -> Term:
        """Build the loss of a plugin with its config."""
        with working(f"making the loss {plugin.name}"):
            loss = plugin.factory(config, context)
        return cls(
            name=name or config.name or plugin.name,
            kind=plugin.kind,
            loss=loss,
            needs=plugin.needs(config),
            tail=getattr(config, "tail", "bucket"),
            top_k=getattr(config, "top_k", None),
            temperature_squared=getattr(config, "temperature_squared", False),
        )

    @classmethod
    def of_recipe(cls, bound: BoundLoss, context: LossContext) -> Term:
        """Build a loss of a recipe."""
        return cls.of(bound.plugin, bound.config, context, bound.name)

    def ask(self, size: int, *inputs: Any) -> Tensor:
        """The loss's values [size]. Raises PLUGIN_INVALID for anything else: its sum would depend on the chunks."""
        with working(f"in the loss {self.name}"):
            value = self.loss(*inputs)
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if given != [size]:
            text = f"a {self.kind} loss must give {[size]} values here, one for each, but it gave {given}"
            hint = "mend the plugin: the classes of limbeck.testing.losses check this and more"
            raise LimbeckError(Reason.PLUGIN_INVALID, problems=[Problem(text, field=f"losses.{self.name}", hint=hint)])
        return value

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The loss's own trained parameters."""
        owned = self.loss.parameters() if isinstance(self.loss, nn.Module) else ()
        return [parameter for parameter in owned if parameter.requires_grad]


@dataclass(frozen=True)
class Values:
    """A term's knobs in force at this step. `knobs`: those that are the loss's own."""

    weight: float = 1.0
    temperature: float = 1.0
    knobs: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, knobs: Mapping[str, float]) -> Values:
        """From all of a loss's knobs by field: `weight`, `temperature` and the loss's own."""
        own = {name: value for name, value in knobs.items() if name not in ("weight", "temperature")}
        return cls(knobs.get("weight", 1.0), knobs.get("temperature", 1.0), own)


@dataclass(frozen=True)
class Source:
    """Where a term's teacher side comes from: an answer on some ids, or the whole vocabulary.

    `vocab_size`: ids at or above it are in the student's or the teacher's tail.
    """

    vocab_size: int
    answer: Answer | None = None
    top_k: int | None = None
    whole: Tensor | None = None  # the teacher's log-probabilities [n, v], or hidden states [n, d] with `head`
    head: Head | None = None

    def ids(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The support's ids [c, k], padding and ids above the shared vocabulary as 0, and which of them are valid."""
        assert self.answer is not None
        ids = self.answer.ids[rows, : self.top_k]
        valid = (ids >= 0) & (ids < self.vocab_size)
        return ids.masked_fill(~valid, 0), valid

    def said(self, rows: slice) -> Tensor | None:
        """Which tokens of a chunk the teacher spoke of [c]; None for all."""
        return None if self.answer is None or self.answer.said is None else self.answer.said[rows]

    def teacher(self, rows: slice, temperature: float, dtype: torch.dtype) -> Support:
        """The teacher's side at `temperature`; what is beyond `top_k` or the shared vocabulary is in its tail."""
        if self.answer is None:
            assert self.whole is not None
            z = self.whole[rows] if self.head is None else self.head.logits(self.whole[rows])
            return split_vocabulary(torch.log_softmax(z.to(dtype) / temperature, dim=1), self.vocab_size)
        if temperature not in self.answer.at:
            raise _no_temperature(temperature, sorted(self.answer.at))
        on_support, tail = (x[rows].to(dtype) for x in self.answer.at[temperature])
        valid = self.ids(rows)[1]
        k = valid.shape[1]
        outside = torch.cat([on_support[:, :k].masked_fill(valid, NEVER), on_support[:, k:], tail[:, None]], dim=1)
        counts = self.answer.counts
        if counts is not None:
            counts = counts[rows, :k].to(dtype).masked_fill(~valid, 0.0)
        return Support(on_support[:, :k].masked_fill(~valid, NEVER), logsumexp(outside), counts)

    def top(self, rows: slice, temperature: float, dtype: torch.dtype) -> Tensor:
        """The teacher's most likely id [c], −1 where it is not of the shared vocabulary."""
        if self.answer is None:
            return self.teacher(rows, temperature, dtype).on_support.argmax(1)
        ids, valid = self.ids(rows)
        return torch.where(valid[:, 0], ids[:, 0], -1)


def source(term: Term, temperature: float, batch: SignalBatch, vocab_size: int, teacher_head: Head | None) -> Source:
    """Where `term` finds its teacher side in the batch. Raises CAPABILITY_MISSING.

    A term that needs `top_k` is served the whole vocabulary where only that is there: it is exact.
    """
    primitive = term.needs.primitive
    if primitive == "none":
        never = torch.full_like(batch.labels, NEVER, dtype=torch.float32)
        certain = (torch.zeros_like(never)[:, None], never)
        return Source(vocab_size, Answer(batch.labels[:, None], {temperature: certain}))
    if primitive in batch.answers:
        return Source(vocab_size, batch.answers[primitive], term.top_k if primitive == "top_k" else None)
    if primitive in ("top_k", "full") and batch.full is not None:
        return Source(min(vocab_size, batch.full.shape[1]), whole=batch.full)
    if primitive in ("top_k", "hidden_states") and -1 in batch.hidden and teacher_head is not None:
        return Source(min(vocab_size, teacher_head.vocab_size), whole=batch.hidden[-1], head=teacher_head)
    raise no_signal(term, batch)


def no_signal(term: Term, batch: SignalBatch) -> LimbeckError:
    """The error for a batch without the signal that `term` needs."""
    have = [*batch.answers, *(["full"] if batch.full is not None else []), *(["hidden_states"] if batch.hidden else [])]
    text = f"{term.name} needs the signal {term.needs.primitive}; the batch has {', '.join(have) or 'none'}"
    return LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field=f"losses.{term.name}")])


def taken(side: Support, rows: Tensor) -> Support:
    """One side for some of its tokens: `rows` [m], their places."""
    return Support(side.on_support[rows], side.tail[rows], None if side.counts is None else side.counts[rows])


def with_tail(side: Support, policy: TailPolicy) -> Support:
    """One side after the tail policy; the same is done to both."""
    if policy == "bucket":
        return side
    none = torch.full_like(side.tail, NEVER)
    if policy == "drop":
        return Support(side.on_support, none, side.counts)
    total = logsumexp(side.on_support)[:, None]
    return Support(side.on_support - total.masked_fill(total == NEVER, 0.0), none, side.counts)


def _no_temperature(temperature: float, known: list[float]) -> LimbeckError:
    text = f"the signal has no temperature {temperature:g}; it has {', '.join(f'{t:g}' for t in known)}"
    hint = "label again with this temperature, or use one that is there"
    return LimbeckError(Reason.CAPABILITY_MISSING, problems=[Problem(text, field="temperature", hint=hint)])
