"""A prompt and its sampling as the body of a request, and what must be refused before any is sent."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.files import digest
from limbeck.interfaces import Sampling, TextPrompt, TextTeacherInfo
from limbeck_openai.config import OpenAIConfig, SamplingField

OVERHEAD = 64  # tokens that a chat template may add to a prompt beyond the bytes of its JSON
_NEUTRAL: dict[SamplingField, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0}
_MESSAGE = ("role", "content", "name", "tool_call_id", "tool_calls")


@dataclass(frozen=True)
class Request:
    """One call: `body` as it is sent but for `stream`; `key` names it in the cache.

    `most_read` and `most_written`: tokens that it costs at most. A token has at least one byte.
    """

    api: str
    body: dict[str, Any]
    key: str
    most_written: int
    logprobs: int

    @cached_property
    def most_read(self) -> int:
        """The prompt's bytes as JSON, with something for a template's own tokens."""
        prompt = next(self.body[name] for name in ("messages", "input", "prompt") if name in self.body)
        return len(json.dumps(prompt, ensure_ascii=False).encode()) + OVERHEAD


def check_request(
    config: OpenAIConfig, info: TextTeacherInfo, prompts: Sequence[TextPrompt], sampling: Sampling
) -> None:
    """Refuse what the endpoint cannot be asked: CAPABILITY_MISSING, or GENERATION_FAILED for prompts and values."""
    if missing := list(_missing(config, info, prompts, sampling)):
        raise LimbeckError(Reason.CAPABILITY_MISSING, "The endpoint cannot be asked like this.", missing)
    if faults := [*_values(sampling), *_repeated(prompts), *_unreadable(prompts)]:
        raise LimbeckError(Reason.GENERATION_FAILED, "The teacher cannot be asked like this.", faults)


def _missing(
    config: OpenAIConfig, info: TextTeacherInfo, prompts: Sequence[TextPrompt], sampling: Sampling
) -> Iterator[Problem]:
    if sampling.logprobs > info.max_logprobs:
        told = f"tells {info.max_logprobs} at most" if info.max_logprobs else "has no generate_top_k"
        hint = (
            "set logprobs (up to 20) in the teacher's config where the endpoint tells them, or use a loss without top_k"
        )
        yield Problem(
            f"{sampling.logprobs} likeliest tokens are asked, the teacher {told}", field="logprobs", hint=hint
        )
    for name, neutral in _NEUTRAL.items():
        value = getattr(sampling, name)
        if config.field(name) is None and value != neutral:
            hint = f"set {name} to {neutral:g}, or name the field in the teacher's config, fields: {{{name}: …}}"
            yield Problem(f"{name} is {value}, the {config.api} api here has no such field", field=name, hint=hint)
    chat = next((prompt for prompt in prompts if not isinstance(prompt.prompt, str)), None)
    if config.api == "completions" and chat is not None:
        hint = "use api: chat, or give prompts as text"
        yield Problem("chat messages, the completions api takes text", field=f"item {chat.item_id}", hint=hint)


def _values(sampling: Sampling) -> Iterator[Problem]:
    allowed = {
        "max_new_tokens": (sampling.max_new_tokens >= 1, "1 or more"),
        "temperature": (sampling.temperature >= 0 and math.isfinite(sampling.temperature), "0 (greedy) or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, up to 1 (off)"),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "logprobs": (sampling.logprobs >= 0, "0 (off) or more"),
    }
    for name, (good, range_) in allowed.items():
        if not good:
            yield Problem(f"is {getattr(sampling, name)}, allowed is {range_}", field=name)


def _repeated(prompts: Sequence[TextPrompt]) -> Iterator[Problem]:
    for name, count in Counter(prompt.item_id for prompt in prompts).items():
        if count > 1:
            yield Problem(f"item_id {name} is given {count} times", field=f"item {name}")


def _unreadable(prompts: Sequence[TextPrompt]) -> Iterator[Problem]:
    for prompt in prompts:
        try:
            json.dumps(prompt.prompt, ensure_ascii=False).encode()
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            hint = "mend or leave out the row"
            yield Problem(f"cannot be sent: {error}", field=f"item {prompt.item_id}", hint=hint)


def draw_of(sampling: Sampling, item_id: int) -> int:
    """The seed of one prompt's draw: 31 bits that depend on (seed, item_id) alone; greedy, the seed itself."""
    if sampling.temperature == 0:
        return sampling.seed
    mixed = hashlib.sha256(f"{sampling.seed} {item_id}".encode()).digest()
    return int.from_bytes(mixed[:4]) & 0x7FFFFFFF


def make_request(config: OpenAIConfig, prompt: TextPrompt, sampling: Sampling) -> Request:
    """The request of one prompt. What is asked is all in it: no default of the endpoint is relied on."""
    draw = draw_of(sampling, prompt.item_id)
    values: dict[SamplingField, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": draw,
        "max_tokens": sampling.max_new_tokens,
    }
    named = {config.field(name): value for name, value in values.items()}
    body: dict[str, Any] = {"model": config.model, **_asked(config, prompt.prompt)}
    body |= {name: value for name, value in named.items() if name is not None}
    body |= _logprobs(config, sampling.logprobs) | config.extra
    key = digest({"base_url": config.base_url, "api": config.api, "draw": draw, "body": body})
    return Request(config.api, body, key, sampling.max_new_tokens, sampling.logprobs)


def _asked(config: OpenAIConfig, prompt: str | list[dict[str, Any]]) -> dict[str, Any]:
    if config.api == "completions":
        return {"prompt": prompt}
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [{name: message[name] for name in _MESSAGE if name in message} for message in prompt]
    return {"messages": messages} if config.api == "chat" else {"input": messages, "store": False}


def _logprobs(config: OpenAIConfig, count: int) -> dict[str, Any]:
    if not count:
        return {}
    if config.api == "completions":
        return {"logprobs": count}
    if config.api == "chat":
        return {"logprobs": True, "top_logprobs": count}
    return {"top_logprobs": count, "include": ["message.output_text.logprobs"]}
