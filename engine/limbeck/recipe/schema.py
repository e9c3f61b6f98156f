"""The fixed part of a recipe: everything but the configs of plugins. Rules between fields are in `rules`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from limbeck.interfaces import Config, LocalPath, ModelPath, PluginRef
from limbeck.recipe.training import TrainingSpec


class StudentSpec(Config):
    """The model that is trained: layers of the teacher, any causal language model, or one from scratch."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Literal["teacher"] | None = Field(
        None, alias="from", description="`teacher`: a copy of the teacher, whole or with some of its layers."
    )
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="With `from`: the teacher's layers to keep, from 0, rising; default all."
    )
    model: ModelPath | None = Field(None, description="A Hugging Face causal language model: a folder, or a hub id.")
    config: dict[str, Any] | LocalPath | None = Field(
        None,
        description="A model from scratch: a config.json (or its folder), or a mapping with `model_type`; what depends "
        "on the tokenizer is filled in.",
    )
    tokenizer: ModelPath | None = Field(None, description="With `config`: its tokenizer; default the teacher's.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the weights while training.")
    seed: int = Field(0, ge=0, lt=2**32, description="With `config`: seed of the first weights.")
    attention: Literal["auto", "eager", "sdpa"] = Field(
        "auto", description="Attention kernel; `auto` is `sdpa`, but `eager` for models that soft-cap attention logits."
    )

    @field_validator("layers")
    @classmethod
    def _rising(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and layers != sorted(set(layers)):
            raise ValueError(f"layers must rise, each once; not {layers}")
        return layers

    @field_validator("config")
    @classmethod
    def _with_a_family(cls, config: Any) -> Any:
        if isinstance(config, dict) and not isinstance(config.get("model_type"), str):
            raise ValueError("config needs model_type, e.g. {model_type: llama, hidden_size: 256}")
        return config


class RationaleSpec(Config):
    """What becomes of the rationale in answers, what stands between <TAG> and </TAG>."""

    tag: str = Field(pattern=r"^[A-Za-z][\w.:-]*$", description="Name of the tag, without brackets: `think`.")
    keep: bool = Field(True, description="`false`: rationale and tags are taken out of the answers that are trained.")
    weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="What the losses of its tokens are multiplied by, tags included; 0: they are context only.",
    )

    @model_validator(mode="after")
    def _kept_or_weighted(self) -> RationaleSpec:
        if not self.keep and self.weight != 1:
            raise ValueError(
                f"a rationale that is not kept has no weight: leave weight {self.weight:g} out, or keep it"
            )
        return self


class DataSpec(Config):
    """The rows, and how they become sequences."""

    path: LocalPath | Annotated[list[LocalPath], Field(min_length=1)] | None = Field(
        None, description="JSONL files of rows that exist."
    )
    generator: PluginRef | None = Field(None, description="A generator plugin that makes the rows.")
    holdout: int | float = Field(
        0.1,
        ge=0,
        description="Rows kept from training, to measure on: a share below 1 or a number of rows; 0: none.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split.")
    max_length: int = Field(
        1024, ge=2, description="Most tokens of a row, not counting the one <bos> that leads it; the end is cut off."
    )
    on_bad_row: Literal["error", "quarantine"] = Field(
        "error", description="`error`: a bad row stops the run, all are listed. `quarantine`: they are set aside."
    )
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether one <bos> leads each sequence; `auto` asks the tokenizer and its template."
    )
    chat_template: LocalPath | None = Field(None, description="A Jinja file used in place of the tokenizer's template.")
    rationale: RationaleSpec | None = Field(
        None, description="What becomes of the rationale in answers; left out, it is text like any other."
    )
    smoke_rows: int = Field(
        16,
        ge=0,
        description="Answers of a teacher that is asked with text (an API) that must pass the recipe's checks before "
        "the rest is asked; 0: none. A teacher on token ids costs nothing, and is not held up.",
    )

    @field_validator("holdout")
    @classmethod
    def _share_or_count(cls, holdout: int | float) -> int | float:
        if isinstance(holdout, float) and 1 <= holdout < math.inf:
            raise ValueError(
                f"holdout {holdout} is neither a share below 1 nor a whole number of rows: write {holdout:.0f} for rows"
            )
        return holdout


class SignalsSpec(Config):
    """Where the trainer gets the teacher's signals from."""

    source: Literal["cached", "online"] = Field(
        "cached",
        description="`cached`: scored once, stored, used in every epoch. `online`: the teacher is asked at each step, "
        "which losses on hidden states and the whole vocabulary need.",
    )


class EvaluationSpec(Config):
    """What is measured after the training, on the held-out rows."""

    twin: bool = Field(
        False, description="Also train an identical student without signals, by cross-entropy, and compare."
    )
    samples: int = Field(4, ge=0, description="Held-out prompts whose continuations are shown side by side.")
    max_new_tokens: int = Field(64, ge=1, description="Most tokens of such a continuation.")
    batch_tokens: int = Field(8192, ge=1, description="Padded tokens of a batch.")


class RecipeFile(Config):
    """A Limbeck recipe: what is distilled into what, from which rows, by which losses."""

    teacher: PluginRef | str | None = Field(
        None, description="A teacher plugin, or a name of `teachers`; not needed by losses without a signal."
    )
    teachers: dict[str, PluginRef] | None = Field(
        None, min_length=1, description="Teacher plugins by name, of which `teacher` picks one."
    )
    student: StudentSpec
    data: DataSpec
    losses: list[PluginRef] = Field(min_length=1, description="Loss plugins; their weighted sum is trained on.")
    signals: SignalsSpec = Field(default_factory=SignalsSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    output: str = Field(min_length=1, description="The run's folder: new, empty, or a run of this recipe.")
