"""The teacher `echo-text` behind Limbeck's interface: asked with text, it answers with words of the prompt."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from limbeck.files import digest
from limbeck.interfaces import Sampling, TextCompletion, TextPrompt, TextTeacherInfo
from limbeck_echo.config import EchoTextConfig

VERSION = 1  # of the function from prompts to answers; part of the digest
WORDS = (3, 8)  # of an answer: at least and at most
_TOKEN = re.compile(r"\s*\S+")  # a word with the space before it is a token


class EchoTextTeacher:
    """Implements :class:`limbeck.interfaces.TextTeacher`. Prompts are answered one by one, in the order asked."""

    def __init__(self, config: EchoTextConfig) -> None:
        self.config = config
        self._calls = self._read = self._written = 0

    def info(self) -> TextTeacherInfo:
        """What it is."""
        return TextTeacherInfo(
            name="echo-text",
            model=f"echo-{self.config.seed}",
            digest=digest(["echo-text", VERSION, self.config.seed]),
            capabilities=frozenset({"generate"}),
            price=None if self.config.price is None else (self.config.price[0], self.config.price[1]),
        )

    async def complete(self, prompts: Sequence[TextPrompt], sampling: Sampling) -> AsyncGenerator[TextCompletion, None]:
        """See :class:`limbeck.interfaces.TextTeacher`."""
        for prompt in prompts:
            await asyncio.sleep(self.config.delay)
            text = _asked(prompt.prompt)
            words = self._words(text, prompt.item_id, sampling)
            written = words[: sampling.max_new_tokens]
            read = len(_TOKEN.findall(text))
            self._calls, self._read, self._written = self._calls + 1, self._read + read, self._written + len(written)
            usage: dict[str, Any] = {
                "model": self.info().model,
                "prompt_tokens": read,
                "completion_tokens": len(written),
            }
            if any(word in text for word in self.config.refuses):
                yield TextCompletion(prompt.item_id, "", "stop", "refused", lineage=usage)
            else:
                whole = len(written) == len(words)
                yield TextCompletion(prompt.item_id, " ".join(written), "stop" if whole else "length", lineage=usage)

    def usage(self) -> Mapping[str, float]:
        """What was asked so far."""
        found = {
            "calls": self._calls,
            "cached": 0,
            "retries": 0,
            "prompt_tokens": self._read,
            "completion_tokens": self._written,
        }
        if self.config.price is None:
            return found
        read, written = self.config.price
        return {**found, "cost": (read * self._read + written * self._written) / 1e6}

    async def close(self) -> None:
        """Nothing is held."""

    def _words(self, text: str, item_id: int, sampling: Sampling) -> list[str]:
        """Words of the prompt, chosen by a hash of it; with a temperature also of the seed and the item."""
        words = text.split()
        draw = [sampling.seed, item_id] if sampling.temperature else []
        raw = hashlib.sha256(repr([self.config.seed, text, draw]).encode()).digest()
        count = WORDS[0] + raw[0] % (WORDS[1] - WORDS[0] + 1)
        return [words[byte % len(words)] for byte in raw[1 : count + 1]] if words else []


def _asked(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
