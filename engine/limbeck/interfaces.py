"""What a plugin author imports: configs, records, requests and protocols.

Nothing here imports torch, transformers or vllm. Tensor names carry their axes: n kept tokens, k ids of a support,
d hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from limbeck.signals import Signal, TopK
    from limbeck.signals.head import OutputHead

# ---------------------------------------------------------------------------------------------------------- configs


class Config(BaseModel):
    """Base of every plugin's config and of the recipe: unknown keys are refused, types are not guessed.

    Give each field a ``Field(description=…)``: it is what ``limbeck plugins show`` and the JSON Schema print. Use
    ``list``, not ``tuple``, for sequences, and the annotated types below for paths and scheduled numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PluginRef(BaseModel):
    """A mapping of the recipe that names a plugin: ``{plugin: NAME, …its config}``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    plugin: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the plugin's name."""
        return dict(self.model_extra or {})

    # Lets pydantic apply a knob's range to "a number or a scheduler": the scheduler's values are checked as they come.
    def __gt__(self, bound: object) -> bool:
        return True

    __ge__ = __lt__ = __le__ = __gt__


def _resolve_with(name: str, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """A text that `resolve[name]` of the validation's context makes absolute; as written where there is no context."""

    def resolve(value: str, info: ValidationInfo[Any]) -> str:
        return str(info.context[name](value, getattr(info, "field_name", None))) if info.context else value

    return core_schema.with_info_after_validator_function(resolve, handler(source))


@dataclass(frozen=True, slots=True)
class PathMark:
    """Marks a config field as a path of the local disk: relative ones are relative to the recipe."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _resolve_with("path", source, handler)


@dataclass(frozen=True, slots=True)
class MadeMark:
    """Marks a config field as a path that is made where it is not there, relative like `PathMark`: no input."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _resolve_with("made", source, handler)


@dataclass(frozen=True, slots=True)
class ModelMark:
    """Marks a config field as a model: a local folder (relative to the recipe) where one exists, else a hub id.

    Without `weights` only its tokenizer and config are read: weights that lie there are not the model's.
    """

    weights: bool = True

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _resolve_with("model", source, handler)


@dataclass(frozen=True, slots=True)
class KnobMark:
    """Marks a config field as a knob: a number, or a scheduler's mapping; `losses.NAME.FIELD` in events."""


@dataclass(frozen=True, slots=True)
class JudgingMark:
    """Marks a config field that judges what a plugin gives and changes none of it: another value makes nothing anew."""


LocalPath = Annotated[str, PathMark()]
MadePath = Annotated[str, MadeMark()]
ModelPath = Annotated[str, ModelMark()]
TokenizerPath = Annotated[str, ModelMark(weights=False)]
# A range (Field(gt=0)) given beside Scheduled holds for the number and for every value a scheduler gives.
Scheduled = Annotated[float | PluginRef, KnobMark()]


class LossConfig(Config):
    """What every loss of a recipe has."""

    name: str = Field("", description="Name in events and knobs; the plugin's name where left out. Unique in a recipe.")
    weight: Annotated[Scheduled, Field(ge=0)] = Field(
        1.0, description="Factor of this term in the sum. May be a schedule."
    )


TailPolicy = Literal["bucket", "renormalise", "drop"]


class TokenLossConfig(LossConfig):
    """What every token loss that looks at a teacher has."""

    temperature: Annotated[Scheduled, Field(gt=0)] = Field(
        1.0, description="Divides the logits of teacher and student alike. May be a schedule."
    )
    temperature_squared: bool = Field(
        True,
        description="Multiply the term by temperature², so that its gradient keeps its size (Hinton et al., 2015).",
    )
    tail: TailPolicy = Field(
        "bucket",
        description="What becomes of the mass outside the support: `bucket` keeps it as one more outcome (never "
        "negative, never above the full divergence), `renormalise` scales the support to 1 on both sides, `drop` "
        "ignores it.",
    )
    top_k: int = Field(
        64,
        ge=1,
        description="Ids of the support. The largest of a recipe is captured; a smaller one has the rest in its tail.",
    )


# ------------------------------------------------------------------------------------------------ what a loss needs

Primitive = Literal["none", "top_k", "token_ids", "samples", "hidden_states", "full", "target"]
Normaliser = Literal["tokens", "rows", "pairs"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a loss must be given: the teacher's signal and what its sum is divided by.

    `layers` are hidden states by Hugging Face's numbering: 0 the embeddings, i the output of block i, the last one
    after the final norm; −1 is the last. `teacher_layers` are asked of the teacher, `student_layers` of the student.
    """

    primitive: Primitive = "none"
    normaliser: Normaliser = "tokens"
    samples: int = 0
    teacher_layers: tuple[int, ...] = ()
    student_layers: tuple[int, ...] = ()
    teacher_text: bool = False  # the completions must have been written by a teacher
    pairs: bool = False  # the rows must be preference pairs


@dataclass(frozen=True, slots=True)
class LossContext:
    """Sizes that a loss with parameters of its own builds them from."""

    student_hidden_size: int
    teacher_hidden_size: int | None
    vocab_size: int


# ------------------------------------------------------------------------------------------------------------ losses


@dataclass(frozen=True, slots=True)
class Support:
    """One side's log-probabilities on k ids per kept token, and of all the rest.

    `on_support` [n, k]; `tail` [n], −inf for nothing. At the loss's temperature, after the tail policy. `counts`
    [n, k], how often each id was drawn, is there for the primitive `samples` only.
    """

    on_support: Tensor
    tail: Tensor
    counts: Tensor | None = None


@runtime_checkable
class TokenLoss(Protocol):
    """One loss per kept token, from log-probabilities of student and teacher on a shared support.

    `knobs` holds the value of each scheduled field of the loss's own config but `weight` and `temperature`, which the
    engine applies. Returns [n]. Never sees a logit; must be differentiable in `student`, and finite where a
    probability is 0 on both sides. For the primitive `none` the support is the label (k = 1) and the teacher
    says 1 there.
    """

    needs: Needs

    def __call__(self, student: Support, teacher: Support, knobs: Mapping[str, float]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """The kept tokens of whole rows, flat. n tokens, r rows, p pairs.

    `logprobs`: by speaker (`student`, `teacher`), [n] log-probability of the actual token at temperature 1.
    `row_n`: row of each token, 0 … r − 1. `offsets_n2`: byte range of each token in its row's trained text.
    `pair_r`: pair of each row, −1 for none; `chosen_r`: whether the row is the preferred one of its pair.
    """

    logprobs: Mapping[str, Tensor]
    row_n: Tensor
    offsets_n2: Tensor
    pair_r: Tensor
    chosen_r: Tensor

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return int(self.pair_r.shape[0])


@runtime_checkable
class SequenceLoss(Protocol):
    """One loss per row or per pair, from per-token log-probabilities of whole rows. Returns [r] or [p]."""

    needs: Needs

    def __call__(self, batch: SequenceBatch, knobs: Mapping[str, float]) -> Tensor: ...


@runtime_checkable
class FeatureLoss(Protocol):
    """One loss per kept token, from hidden states by layer, each [n, d]. Returns [n].

    A feature loss with parameters is a ``torch.nn.Module``: they are trained and checkpointed, never exported.
    """

    needs: Needs

    def __call__(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], knobs: Mapping[str, float]
    ) -> Tensor: ...


LossKind = Literal["token", "sequence", "feature"]
Loss = TokenLoss | SequenceLoss | FeatureLoss

# -------------------------------------------------------------------------------------------------------- schedulers


@runtime_checkable
class Scheduler(Protocol):
    """The value of a knob as a function of progress and, if it asks, of the latest metrics.

    `progress` runs from 0.0 (before the first optimizer step) to 1.0; `metrics` are the latest logged ones, empty at
    first. `values()` lists every value that it can take where these are finitely many (a step function), else None:
    a temperature over stored signals must be a step function. The state must be JSON.
    """

    def value(self, progress: float, metrics: Mapping[str, float]) -> float: ...

    def values(self) -> Sequence[float] | None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


# ---------------------------------------------------------------------------------------------------------- teachers


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """What a teacher is and can do. Digests are of contents (sha256 hex), never of paths.

    `temperatures` None: any positive temperature, computed exactly; else the only ones that it can give.
    `max_top_k`: most ids that it tells of a row, None: the whole vocabulary.
    `tail_exact`: the tail is a logsumexp over the complement, not 1 − Σ. `eos_ids`: every id that ends a text.
    `bos_id`: the id that leads every sequence, None for none.
    """

    name: str
    vocab_size: int
    tokenizer_digest: str
    template_digest: str | None
    weights_digest: str
    max_length: int
    capabilities: frozenset[str]
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    temperatures: tuple[float, ...] | None = None
    max_top_k: int | None = None
    tail_exact: bool = True
    hidden_size: int | None = None
    num_layers: int | None = None
    parameters: int | None = None


CAPABILITIES = ("generate", "generate_top_k", "top_k", "token_ids", "samples", "hidden_states", "full", "target")


@dataclass(frozen=True, slots=True)
class Want:
    """What is asked of a teacher about each covered position; several may be asked at once.

    `top_k` ids with tails at `temperatures`; `target`: log-probability of the actual next token; `samples` draws;
    `layers`: hidden states (see :class:`Needs`); `full`: the whole vocabulary.
    """

    top_k: int = 0
    temperatures: tuple[float, ...] = (1.0,)
    target: bool = False
    token_ids: bool = False  # each ScoreItem says which
    samples: int = 0
    layers: tuple[int, ...] = ()
    full: bool = False

    def primitives(self) -> frozenset[str]:
        """The capabilities that a teacher must have to answer."""
        asked = {
            "top_k": self.top_k > 0,
            "target": self.target,
            "token_ids": self.token_ids,
            "samples": self.samples > 0,
            "hidden_states": bool(self.layers),
            "full": self.full,
        }
        return frozenset(name for name, yes in asked.items() if yes)


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One sequence to score: all of `ids` are read, rows `first_row` … `first_row + n − 1` are answered.

    `ids` int32 [t] with the leading <bos> already there. Row j speaks of token j + 1, so `first_row + n ≤ t − 1`
    where the target is asked, and ≤ t otherwise. `token_ids` int32 [n, m]: the ids asked for per row (dense), or CSR
    as (`token_ids` [nnz], `offsets` int64 [n + 1]). `seed` makes `samples` repeatable.
    """

    item_id: int
    ids: npt.NDArray[np.int32]
    first_row: int
    n: int
    token_ids: npt.NDArray[np.int32] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a text is drawn. Every field is sent to the model; a model folder's generation_config never leaks in.

    `temperature` 0 is greedy. `top_p` 1 and `top_k` 0 are off. Every one of the teacher's `eos_ids` ends a text.
    `logprobs`: so many likeliest ids are told of each written token, at temperature 1 and whatever the other fields
    are (capability `generate_top_k`).
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to continue: `ids` int32 [t], leading <bos> there. Its draw depends on (seed, item_id) only."""

    item_id: int
    ids: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Said:
    """What a teacher said of each token while it wrote them: row j of `top_k` (temperature 1) speaks of `ids`[j].

    `ids` int32 [n]: the written tokens, and the end token where it is known what was said of it. `target` f32 [n]: the
    log-probability of `ids`[j]. A signal of these rows that costs no further question.
    """

    ids: npt.NDArray[np.int32]
    top_k: TopK
    target: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A teacher's continuation. `ids` int32 [t] without the end token; `length`: cut by `max_new_tokens`.

    `said`: where `Sampling.logprobs` asks for it.
    """

    item_id: int
    ids: npt.NDArray[np.int32]
    finish_reason: Literal["stop", "length"]
    said: Said | None = None


@runtime_checkable
class Teacher(Protocol):
    """A model that scores and continues token sequences.

    `info` is cheap: it loads no weights. `score` and `generate` yield answers as they are ready, in any order, one per
    item; closing the iterator, or cancelling the task that waits for it, stops the work at the next batch. Several
    requests may be under way at once. A request beyond the capabilities raises CAPABILITY_MISSING before any work.
    `close` may be called twice.
    """

    def info(self) -> TeacherInfo: ...

    def score(self, items: Sequence[ScoreItem], want: Want) -> AsyncGenerator[tuple[int, Signal], None]: ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[Completion, None]: ...

    async def close(self) -> None: ...


@runtime_checkable
class HeadTeacher(Teacher, Protocol):
    """A teacher that gives its output head, so that its last hidden states are the exact full vocabulary elsewhere.

    For teachers with `hidden_states`; may be left out. Raises MODEL_INVALID where the head is not of that form.
    """

    async def output_head(self) -> OutputHead: ...


@runtime_checkable
class StartingTeacher(Teacher, Protocol):
    """A teacher whose start takes long and is told of. May be left out: then the first request starts it.

    `start` returns when requests are answered without further delay; a second call returns at once. `told` hears, in
    order, what is being done, in a few words ("loading the weights"). Raises MODEL_INVALID, TEACHER_UNAVAILABLE.
    """

    async def start(self, told: Callable[[str], object]) -> None: ...


# ----------------------------------------------------------------------------------------------------- text teachers


@dataclass(frozen=True, slots=True)
class TextTeacherInfo:
    """What a teacher that is asked with text is: an API. It has no token ids, no weights and no digest of them.

    `model`: its name at the service. `digest`: sha256 (hex) of all that its answers depend on but prompts and sampling:
    service, model, options; never a key. `capabilities`: `generate`, and `generate_top_k` where it tells the likeliest
    tokens of what it writes, up to `max_logprobs` of them. `price` in money a million tokens read and written, None
    where it is not known; `currency` names the money. `warnings`: what stands in the way of its next call, such as a
    key that is not there; answers that are known can be had all the same.
    """

    name: str
    model: str
    digest: str
    capabilities: frozenset[str]
    max_logprobs: int = 0
    price: tuple[float, float] | None = None
    currency: str = "USD"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt to answer: a text, or chat messages {role, content, …}. Its draw depends on (seed, item_id) only."""

    item_id: int
    prompt: str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token that an API wrote: its bytes, its log-probability, and the likeliest (bytes, log-probability) there."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class TextCompletion:
    """An API's answer to one prompt.

    `rejected`: why it must not be trained, in the words of a count: ``refused``, ``content_filter``, ``failed: …``;
    None for a good one. `tokens`: where `Sampling.logprobs` asks for them; their bytes make `text`. `lineage`: what a
    row should keep of where the answer came from, JSON (model as the service names it, tokens read and written).
    """

    item_id: int
    text: str
    finish_reason: Literal["stop", "length"]
    rejected: str | None = None
    tokens: tuple[TextToken, ...] | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class TextTeacher(Protocol):
    """A model that is asked with text and answers with text.

    `complete` yields one answer per prompt as they are ready, in any order; closing the iterator starts no further
    call and keeps what was paid for. A prompt that cannot be answered is an answer with `rejected`; what concerns all
    prompts (no key, no such model, nobody there, the budget used up) is raised: TEACHER_REFUSED, SERVER_UNAVAILABLE,
    BUDGET_EXHAUSTED. `usage` counts since the teacher was made: `calls`, `cached`, `retries`, `prompt_tokens`,
    `completion_tokens`, and `cost` where prices are known; cheap, from any thread. `close` may be called twice.
    """

    def info(self) -> TextTeacherInfo: ...

    def complete(self, prompts: Sequence[TextPrompt], sampling: Sampling) -> AsyncGenerator[TextCompletion, None]: ...

    def usage(self) -> Mapping[str, float]: ...

    async def close(self) -> None: ...


# -------------------------------------------------------------------------------------------------------- generators


@dataclass(frozen=True, slots=True)
class Written:
    """A text that a model wrote for the prompt at `place`.

    `rejected`: why it must not be trained, None for a good one. `said`: what was said of its tokens, where that is
    captured. `lineage`: what the row should keep of how it came, JSON.
    """

    place: int
    text: str
    finish_reason: Literal["stop", "length"]
    rejected: str | None = None
    said: Said | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


class TextModel(Protocol):
    """A teacher as a generator sees it: text in, text out. The engine wraps a Teacher with its tokenizer, or an API.

    `prompts` are rows' prompts: a string, or chat messages. Yields answers as they are ready. It may have `lineage`,
    JSON that says who writes, and `window`: how many prompts it is well asked at once.
    """

    def complete(
        self, prompts: Sequence[str | list[dict[str, Any]]], sampling: Sampling, first_id: int
    ) -> AsyncGenerator[Written, None]: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One row that a generator made, as it goes into rows/: `row` is a JSON object of a known row format.

    `position`: which of the generator's samples, from 0. `rejected`: why it must not be trained (an empty answer), None
    for a good one; rejected samples are counted and kept apart. `lineage`: where it came from, JSON. `said`: what the
    model said of the answer's tokens (:class:`Written`), so that they need not be scored; None where the row's prompt
    is another one than the model was asked.
    """

    position: int
    row: dict[str, Any]
    rejected: str | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    said: Said | None = None


@runtime_checkable
class Generator(Protocol):
    """Yields samples in order of position, from files, from a teacher, or both.

    `needs_teacher`: whether it calls the model. `count()`: how many samples in all, None where unknown.
    `samples(start, model)` yields those from position `start` on, the same whatever `start` is: a generator is
    resumed by position. `inputs()` lists the files read, for the digest of the stage. `require` is told how many
    samples of all attempts are usable, how many were rejected by reason, and how many are still to come; it raises
    GENERATION_FAILED where too few can become usable.
    """

    needs_teacher: bool

    def count(self) -> int | None: ...

    def inputs(self) -> Sequence[str]: ...

    def samples(self, start: int, model: TextModel | None) -> AsyncGenerator[Sample, None]: ...

    def require(self, good: int, rejected: Mapping[str, int], left: int) -> None: ...


# ----------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPlugin:
    """A teacher backend, on token ids or on text.

    `factory(config)` imports heavy modules when called, and loads weights at the first request.
    """

    name: str
    config: type[Config]
    factory: Callable[[Any], Teacher | TextTeacher]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorPlugin:
    """A data generator. `factory(config)`."""

    name: str
    config: type[Config]
    factory: Callable[[Any], Generator]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPlugin:
    """A loss. `factory(config, context)`; `needs(config)` says what it needs without building it or importing torch."""

    name: str
    config: type[LossConfig]
    factory: Callable[[Any, LossContext], Loss]
    summary: str
    kind: LossKind
    needs: Callable[[Any], Needs]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerPlugin:
    """A scheduler of knobs. `factory(config)`."""

    name: str
    config: type[Config]
    factory: Callable[[Any], Scheduler]
    summary: str


Plugin = TeacherPlugin | GeneratorPlugin | LossPlugin | SchedulerPlugin
PluginKind = Literal["teacher", "generator", "loss", "scheduler"]
