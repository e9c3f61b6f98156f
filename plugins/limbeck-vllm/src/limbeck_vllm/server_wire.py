"""What a protocol to a server must be able to do. Everything runs in one event loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from limbeck.data import Tokenizer
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem
from limbeck_vllm.server_config import VllmServerConfig
from limbeck_vllm.server_rows import Rows
from limbeck_vllm.server_tries import Refusal


@dataclass(frozen=True, slots=True)
class Served:
    """A model as its server tells of it. `root`: where the server has it from. `vocab_size` 0: it does not say."""

    model: str
    root: str
    max_model_len: int
    vocab_size: int = 0


class Wire(Protocol):
    """Questions to one server; each raises LimbeckError.

    `model`: the name that the server has for it, "" before :meth:`served` has found it. `spare`: how much larger the k
    is that is asked for than the one that is wanted.
    """

    model: str
    spare: int

    async def served(self) -> Served:
        """The model of the config. Raises TEACHER_REFUSED where there is no such one. Sets `model`."""

    async def same(self, tokenizer: Tokenizer) -> bool:
        """Whether the server has this tokenizer; True where it does not tell."""

    async def takes(self, token: int, k: int) -> Refusal | None:
        """Whether it takes a prompt of one token with k log-probabilities: its words where it does not."""

    async def best(self, token: int, temperature: float) -> float:
        """The log-probability that it tells of the likeliest token behind `token`, when it draws at a temperature."""

    async def score(self, item: ScoreItem, k: int, vocab_size: int) -> Rows:
        """The rows of an item with their k best and targets; of the row behind the last token, no target."""

    async def write(self, prompt: Prompt, sampling: Sampling, eos_ids: tuple[int, ...], vocab_size: int) -> Completion:
        """The text behind a prompt."""

    async def close(self) -> None:
        """End the connections. A second call does nothing."""


def refused(config: VllmServerConfig, message: str, hint: str, field: str | None = None) -> LimbeckError:
    """What speaks against a server as such."""
    problem = Problem(f"{config.address}: {message}", field=field, hint=hint)
    return LimbeckError(Reason.TEACHER_REFUSED, problems=[problem])
