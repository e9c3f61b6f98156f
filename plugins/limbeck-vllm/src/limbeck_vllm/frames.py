"""Messages between the teacher and the process of its engine: 8 bytes of length, and MessagePack.

Both ends are this distribution's code in processes of one user, over a socket that nobody else can open.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

PREFIX = 8


class Start(msgspec.Struct, frozen=True, tag=True):
    """How the engine is to be started: vLLM's engine arguments, and the folder of an adapter."""

    arguments: dict[str, Any]
    lora: str | None
    defaults_on_cpu: dict[str, Any]


class Question(msgspec.Struct, frozen=True, tag=True):
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


class Rows(msgspec.Struct, frozen=True, tag=True):
    """Log-probabilities of rows: the actual token's, f32 [n], and the k likeliest ids', int32 and f32 [n, k]."""

    target: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


class Answer(msgspec.Struct, frozen=True, tag=True):
    """What the engine says: `prompt` rows, the `written` ids with their rows (`said`), `token_ids` f32 [rows, m]."""

    number: int
    written: npt.NDArray[np.int32]
    stopped: bool
    prompt: Rows | None = None
    said: Rows | None = None
    token_ids: npt.NDArray[np.float32] | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The engine did not answer one question; it lives on."""

    number: int
    words: str


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Questions whose answers nobody waits for any more."""

    numbers: tuple[int, ...]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine answers."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The engine could not be started, or died: in its own words."""

    words: str


Message = Start | Question | Answer | Refused | Abort | Ready | Ended


def packed(message: Message) -> bytes:
    """A message as it travels."""
    content = msgspec.msgpack.encode(message, enc_hook=_parts)
    return len(content).to_bytes(PREFIX, "little") + content


def unpacked(content: bytes) -> Message:
    """The message of a frame."""
    message: Message = msgspec.msgpack.decode(content, type=Message, dec_hook=_array)
    return message


def _parts(value: Any) -> Any:
    """A numpy array as (dtype, shape, bytes); other values as the plain ones that they stand for."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def _array(kind: Any, value: Any) -> npt.NDArray[Any]:
    dtype, shape, content = value
    return np.frombuffer(content, dtype).reshape(shape)
