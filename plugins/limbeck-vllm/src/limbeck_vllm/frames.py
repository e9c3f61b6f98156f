"""Messages between the teacher and the process of its engine: 8 bytes of length, and a pickle.

Both ends are this distribution's code in processes of one user, over a socket that nobody else can open.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PREFIX = 8


@dataclass(frozen=True, slots=True)
class Start:
    """How the engine is to be started: vLLM's engine arguments, and the folder of an adapter."""

    arguments: dict[str, Any]
    lora: str | None
    defaults_on_cpu: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One sequence, to score or to continue.

    `prompt_logprobs`: so many ids of each row from `first` to `first + n`, None for none; `logprobs`: of each written
    token. `token_ids` int32 [rows, m] asks for given ids of the rows from `first` on, −1 pads. `sampling` are more of
    vLLM's sampling parameters.
    """

    number: int
    ids: npt.NDArray[np.int32]
    first: int = 0
    n: int = 0
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    token_ids: npt.NDArray[np.int32] | None = None
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Log-probabilities of rows: the actual token's, f32 [n], and the k likeliest ids', int32 and f32 [n, k]."""

    target: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine says: `prompt` rows, the `written` ids with their rows (`said`), `token_ids` f32 [rows, m]."""

    number: int
    written: npt.NDArray[np.int32]
    stopped: bool
    prompt: Rows | None = None
    said: Rows | None = None
    token_ids: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine did not answer one question; it lives on."""

    number: int
    words: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Questions whose answers nobody waits for any more."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine answers. `scores_token_ids`: whether it can score ids that are given."""

    scores_token_ids: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The engine could not be started, or died: in its own words."""

    words: str


def packed(message: object) -> bytes:
    """A message as it travels."""
    content = pickle.dumps(message, protocol=5)
    return len(content).to_bytes(PREFIX, "little") + content


def unpacked(content: bytes) -> Any:
    """The message of a frame."""
    return pickle.loads(content)
