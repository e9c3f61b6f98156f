"""What a recipe says of the `prompts` generator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.interfaces import Config, JudgingMark, LocalPath


class PromptsConfig(Config):
    """Prompts of a file, answered by the teacher with these sampling values; none comes from the model's folder."""

    path: LocalPath = Field(
        description="JSONL file, or a folder of them, with rows {prompt} or {messages} that end with a question."
    )
    max_new_tokens: int = Field(64, ge=1, description="Tokens of an answer at most; a cut one trains no end token.")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 takes the likeliest token each time.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the smallest set with this mass; 1 is off.")
    top_k: int = Field(0, ge=0, description="Draw from this many likeliest tokens; 0 is off.")
    seed: int = Field(0, description="Of the draws. An answer depends on (seed, place in the file) only.")
    min_success_ratio: Annotated[float, JudgingMark()] = Field(
        0.5, ge=0, le=1, description="Share of prompts that must get a usable answer; below it the run fails."
    )
