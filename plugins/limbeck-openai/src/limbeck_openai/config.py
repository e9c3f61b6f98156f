"""What a recipe says of the `openai` teacher."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from limbeck.interfaces import Config, MadePath

Api = Literal["chat", "responses", "completions"]
SamplingField = Literal["temperature", "top_p", "top_k", "seed", "max_tokens"]
MAX_LOGPROBS = 20

# What each of Limbeck's sampling fields is called in a request; None where the api has no such field.
FIELDS: dict[Api, dict[SamplingField, str | None]] = {
    "chat": {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": None,
        "seed": "seed",
        "max_tokens": "max_tokens",
    },
    "completions": {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": None,
        "seed": "seed",
        "max_tokens": "max_tokens",
    },
    "responses": {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": None,
        "seed": None,
        "max_tokens": "max_output_tokens",
    },
}
_OURS = (
    *("model", "messages", "input", "prompt", "stream", "stream_options", "n", "store"),
    *("logprobs", "top_logprobs", "include", "temperature", "top_p", "top_k", "seed"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens"),
)


class Price(Config):
    """What the service takes."""

    input: float = Field(ge=0, description="Money for a million tokens read.")
    output: float = Field(ge=0, description="Money for a million tokens written, hidden reasoning too.")
    currency: str = Field("USD", min_length=1, description="Name of the money.")


class Budget(Config):
    """What all calls recorded in the cache folder may cost together."""

    tokens: int | None = Field(None, ge=1, description="Tokens read and written.")
    money: float | None = Field(None, gt=0, description="Money of `price`'s currency.")


class OpenAIConfig(Config):
    """A model at an endpoint, and how patiently and how dearly it is asked."""

    base_url: str = Field(
        "https://api.openai.com/v1", description="Where the endpoint is, up to and with its version: `…/v1`."
    )
    model: str = Field(min_length=1, description="The model's name at the endpoint.")
    api: Api = Field(
        "chat",
        description="`chat` completions, `responses`, or plain `completions`, which take a text as it is.",
    )
    key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the API key; at api.openai.com OPENAI_API_KEY where left out, "
        "elsewhere no key is sent.",
    )
    concurrency: int = Field(16, ge=1, le=1000, description="Calls under way at once.")
    timeout: float = Field(
        60.0, gt=0, description="Seconds of a try without an answer, or, streamed, without a further part of it."
    )
    tries: int = Field(5, ge=1, description="How often a prompt is asked before it has failed.")
    stream: bool = Field(False, description="Read answers part by part: a long one need not be whole within `timeout`.")
    logprobs: int = Field(
        0,
        ge=0,
        le=MAX_LOGPROBS,
        description="So many likeliest tokens the endpoint tells of each token that it writes; 0: it tells none.",
    )
    price: Price | None = Field(
        None, description="`{input, output, currency}`: money for a million tokens, for `cost` and a budget in money."
    )
    budget: Budget | None = Field(
        None, description="`{tokens, money}`: what may be spent, counted in `cache`; no limit where left out."
    )
    cache: MadePath | None = Field(
        None, description="Folder of the answers that were paid for; a folder of the user's cache where left out."
    )
    served_as: str | None = Field(
        None,
        min_length=1,
        description="The name that the endpoint gives the model in its answers, where that is not `model` or a dated "
        "snapshot of it.",
    )
    reasoning_tag: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="A reasoning text that comes beside the answer goes before it as <TAG>…</TAG>; left out: dropped.",
    )
    fields: dict[SamplingField, str | None] = Field(
        default_factory=dict,
        description="Other names of sampling fields (temperature, top_p, top_k, seed, max_tokens) at this endpoint; "
        "null: it has none.",
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="More fields of each request's body.")

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from None
        if "@" in parts.netloc:
            raise ValueError(
                "holds a user or password; put the key in the environment and name its variable in key_env"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"is {value!r}, needed is http://HOST… or https://HOST…, mostly up to /v1")
        if parts.query or parts.fragment:
            raise ValueError("has a query or fragment; a key there would be stored: name its variable in key_env")
        return value.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(value) & set(_OURS)):
            raise ValueError(
                f"names {', '.join(taken)}, which Limbeck sets itself from the other options and the sampling"
            )
        return value

    @field_validator("fields")
    @classmethod
    def _limits_length(cls, value: dict[SamplingField, str | None]) -> dict[SamplingField, str | None]:
        if "max_tokens" in value and value["max_tokens"] is None:
            raise ValueError("max_tokens has no name: an answer without a limit could cost anything")
        return value

    @model_validator(mode="after")
    def _fits(self) -> OpenAIConfig:
        if self.budget is not None:
            if self.budget.money is not None and self.price is None:
                raise ValueError("budget.money needs price: {input: …, output: …}, or give budget.tokens")
            if self.budget.money is None and self.budget.tokens is None:
                raise ValueError("budget names neither tokens nor money")
            if self.cache is None:
                raise ValueError("budget counts the calls of one cache folder: name it, cache: FOLDER")
        if self.logprobs and self.reasoning_tag is not None:
            raise ValueError(
                "logprobs and reasoning_tag exclude each other: no log-probabilities come with a reasoning text"
            )
        return self

    @property
    def host(self) -> str:
        """The endpoint's host name."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def key_variable(self) -> str | None:
        """Where the key is looked for; None: no key is sent."""
        return self.key_env or ("OPENAI_API_KEY" if self.host == "api.openai.com" else None)

    def field(self, name: SamplingField) -> str | None:
        """What a sampling field is called in a request, None where the endpoint has none."""
        if name in self.fields:
            return self.fields[name]
        if name == "max_tokens" and self.api == "chat" and self.host.endswith(("api.openai.com", ".openai.azure.com")):
            return "max_completion_tokens"  # the only one that reasoning models take there
        return FIELDS[self.api][name]

    def serves(self, reported: str | None) -> bool:
        """Whether an answer that names its model so is of the model asked for. Many services name none."""
        if not reported:
            return True
        if self.served_as is not None:
            return reported == self.served_as
        return reported == self.model or re.fullmatch(re.escape(self.model) + r"-[0-9][0-9-]*", reported) is not None
