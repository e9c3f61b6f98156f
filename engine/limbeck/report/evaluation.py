"""evaluation/evaluation.json: what the evaluation measured on the held-out rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Speaker = Literal["teacher", "untrained", "twin", "student"]
Aim = Literal["teacher", "text", "preferences"]


class Part(BaseModel):
    """A part of report.json: NaN and infinities are the strings "NaN", "Infinity", "-Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class ModelFigures(Part):
    """One model on the held-out rows, figures weighted by tokens but those of pairs; null where one does not apply."""

    parameters: int | None = None
    bytes: int | None = Field(None, description="Bytes of its weights as stored.")
    tokens_per_second: float | None = Field(None, description="Tokens a second, measured by the evaluation.")
    perplexity: float | None = Field(None, description="exp(cross_entropy).")
    cross_entropy: float | None = Field(None, description="Nats a token, on the held-out completions.")
    forward_kl: float | None = Field(
        None,
        description="KL(teacher ‖ model), nats a token, on the teacher's k likeliest ids with the rest as one more "
        "outcome: at most the KL over the whole vocabulary.",
    )
    top1_agreement: float | None = Field(None, description="Fraction of tokens with the teacher's likeliest next id.")
    preference_accuracy: float | None = Field(
        None,
        description="Fraction of preference pairs whose chosen text has the larger log-ratio of model to reference "
        "(the teacher); a tie counts half. Null without pairs.",
    )
    preference_margin: float | None = Field(
        None, description="Mean over the pairs of the chosen text's log-ratio less the rejected one's, in nats."
    )


class Sample(Part):
    """The continuations of one held-out prompt, side by side."""

    prompt: str
    reference: str | None = None
    teacher: str | None = None
    untrained: str | None = None
    twin: str | None = None
    student: str | None = None


class Holdout(Part):
    """What the figures were measured on."""

    rows: int
    tokens: int
    pairs: int = Field(0, description="Preference pairs among the rows.")
    unsaid_tokens: int = Field(0, description="Tokens of which the teacher said nothing: KL and top-1 leave them out.")


class Evaluation(Part):
    """The whole file."""

    models: dict[Speaker, ModelFigures]
    holdout: Holdout
    aim: Aim = Field(
        "teacher",
        description="What the student is judged by: closeness to the teacher; the teacher's text, where nothing is "
        "known of its tokens; or preferences, for losses to which the teacher is but the reference to move away from.",
    )
    samples: list[Sample] = Field(default_factory=list)
    sampling: dict[str, Any] = Field(default_factory=dict, description="Sampling in force for the samples.")
