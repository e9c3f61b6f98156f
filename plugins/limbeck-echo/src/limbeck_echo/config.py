"""What a recipe says of the `echo` teacher."""

from __future__ import annotations

from pydantic import Field

from limbeck.interfaces import Config, ModelPath


class EchoConfig(Config):
    """A tokenizer and a seed stand for the model."""

    tokenizer: ModelPath = Field(description="Folder of the tokenizer that the student shares.")
    vocab_size: int | None = Field(None, ge=1, description="Rows of the output; the tokenizer's size where left out.")
    max_length: int = Field(4096, ge=1, description="Tokens that it reads at most.")
    seed: int = Field(0, ge=0, description="Another seed is another model: other numbers, another weights digest.")
