"""What a recipe says of the teachers `echo` and `echo-text`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.interfaces import Config, ModelPath


class EchoConfig(Config):
    """A tokenizer and a seed stand for the model."""

    tokenizer: ModelPath = Field(description="Folder of the tokenizer that the student shares.")
    vocab_size: int | None = Field(None, ge=1, description="Rows of the output; the tokenizer's size where left out.")
    max_length: int = Field(4096, ge=1, description="Tokens that it reads at most.")
    seed: int = Field(0, ge=0, description="Another seed is another model: other numbers, another weights digest.")


class EchoTextConfig(Config):
    """A seed stands for the model; what a service would cost and refuse can be played."""

    seed: int = Field(0, ge=0, description="Another seed is another model, with other answers.")
    price: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=2, max_length=2, description="Money (USD) a million tokens read and written: [0.15, 0.6]."
    )
    delay: float = Field(0.0, ge=0, description="Seconds that an answer takes.")
    refuses: list[str] = Field(default_factory=list, description="Prompts with one of these words are refused.")
