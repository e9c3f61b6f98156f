"""What a recipe says of the teacher `vllm-server`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from limbeck.interfaces import Config, TokenizerPath


def _address(value: str) -> str:
    """The root of a server, without a slash at its end. Raises ValueError."""
    example = "write it like http://10.0.0.7:8000"
    try:
        parts = urlsplit(value)
        port = parts.port  # raises where it is no number
    except ValueError as error:
        raise ValueError(f"{value!r} is no address: {error}; {example}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("a name or password in an address would be shown in logs; put the key where `key_env` says")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{value!r} is no address of a server; {example}")
    if parts.query or parts.fragment:
        raise ValueError(f"{value!r} has more than an address; {example}")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"{value!r} ends with /v1, which is added by itself; leave it away")
    return value.rstrip("/")


class VllmServerConfig(Config):
    """A model of a vLLM server that somebody else runs (`vllm serve`)."""

    address: Annotated[str, AfterValidator(_address)] = Field(description="Root of the server: `http://host:8000`.")
    tokenizer: TokenizerPath = Field(
        description="Folder, or id on the hub, with the tokenizer and chat template of the served model."
    )
    model: str | None = Field(
        None, min_length=1, description="Its name at the server; may be left out where the server has one model."
    )
    protocol: Literal["http", "grpc"] = Field(
        "http",
        description="`grpc` for a server started with `--grpc`: answers are a tenth as large, and ready sooner.",
    )
    concurrency: int = Field(16, ge=1, le=4096, description="Requests at the server at once.")
    timeout: float = Field(300.0, gt=0, description="Seconds until an answer must be there, waiting for its turn too.")
    tries: int = Field(
        8,
        ge=1,
        description="Times that a request is tried while the server is lost, busy or broken; 1, 2, 4 … 30 s apart.",
    )
    key_env: str | None = Field(
        None, min_length=1, description="Environment variable that holds the API key, where the server wants one."
    )
