"""What an endpoint sent, read: one shape for the three apis, whole or streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.data import reject_reason
from limbeck.interfaces import TextToken
from limbeck_openai.faults import Fault, of_error_event, shown
from limbeck_openai.keys import Key
from limbeck_openai.requests import Request
from limbeck_openai.tally import Usage

Finish = Literal["stop", "length"]
_STOP = ("stop", "eos", "end_turn", "stop_sequence")
_NOT_DONE = (None, "", "error", "abort")  # the service broke off: not an answer


@dataclass(frozen=True)
class Answer:
    """An answer that was paid for. `usage` None: the service did not say. `rejected`: why it must not be trained.

    `tokens` None: they were not asked for, or do not make the text.
    """

    text: str
    finish: Finish
    rejected: str | None = None
    reasoning: str = ""
    model: str | None = None
    fingerprint: str | None = None
    usage: Usage | None = None
    tokens: tuple[TextToken, ...] | None = None

    def to_json(self) -> str:
        """One line, for the cache. Bytes are written as latin-1."""
        value = {
            "text": self.text,
            "finish": self.finish,
            "rejected": self.rejected,
            "reasoning": self.reasoning,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "usage": self.usage and [self.usage.read, self.usage.written],
            "tokens": self.tokens
            and [
                [t.text.decode("latin-1"), t.logprob, [[b.decode("latin-1"), v] for b, v in t.top]] for t in self.tokens
            ],
        }
        return json.dumps(value, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> Answer:
        """The reverse of :meth:`to_json`."""
        value = json.loads(text)
        usage, tokens = value.pop("usage"), value.pop("tokens")
        read = None
        if tokens is not None:
            read = tuple(
                TextToken(t.encode("latin-1"), p, tuple((b.encode("latin-1"), v) for b, v in top))
                for t, p, top in tokens
            )
        return cls(**value, usage=Usage(*usage) if usage else None, tokens=read)


@contextmanager
def reading(sent: Any, key: Key) -> Iterator[None]:
    """Within, `sent` (bytes or JSON) is read. Raises Fault with its first bytes where it has another shape than told.

    Half of a surrogate pair is none of Unicode's characters, and no text.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        text = sent.decode("utf-8", "replace") if isinstance(sent, bytes) else json.dumps(sent, ensure_ascii=False)
        raise Fault("failed", f"not an answer: {shown(key.hide(text))}", paid=True) from None


def read_answer(request: Request, raw: bytes, key: Key) -> Answer:
    """The answer in the body of a 200. Raises Fault where it is none."""
    with reading(raw, key):
        return read_value(request, json.loads(raw), key)


def read_value(request: Request, value: dict[str, Any], key: Key) -> Answer:
    """The answer in a JSON object.

    Raises Fault: an error inside, no end, no log-probabilities though asked; and any error of a value of another shape.
    """
    value = key.hide_in(value)
    if value.get("error"):
        raise of_error_event(value["error"], key)
    reader = {"chat": _chat, "completions": _completion, "responses": _response}[request.api]
    text, reasoning, finish, reason, tokens = reader(value)
    usage = read_usage(value)
    if finish in _NOT_DONE:
        raise Fault("failed", f"broken off: finish_reason {finish!r}", paid=True, usage=usage)
    rejected = reason or _rejection(text, finish)
    kept: tuple[TextToken, ...] | None = None
    if request.logprobs and rejected is None:
        if not tokens:
            words = "the endpoint tells no log-probabilities though they were asked; set logprobs: 0"
            raise Fault("all", words, paid=True, usage=usage)
        kept = _of_text(tokens, text, finish, request.logprobs)
    return Answer(
        text=text,
        finish="length" if finish == "length" else "stop",
        rejected=rejected,
        reasoning=reasoning,
        model=_text(value.get("model")) or None,
        fingerprint=_text(value.get("system_fingerprint")) or None,
        usage=usage,
        tokens=kept,
    )


def _rejection(text: str, finish: str | None) -> str | None:
    if finish == "content_filter":
        return "content_filter"
    if finish in ("tool_calls", "function_call"):
        return "tool_calls"
    if finish not in (*_STOP, "length"):
        return f"failed: finish_reason {finish!r}"
    return reject_reason(text)


_Read = tuple[str, str, str | None, str | None, "list[TextToken] | None"]


def _chat(value: Mapping[str, Any]) -> _Read:
    choice = value["choices"][0]
    message = choice["message"]
    finish = choice.get("finish_reason")
    reason = None
    if message.get("refusal"):
        reason = "refused"
    elif (message.get("tool_calls") or message.get("function_call")) and finish != "content_filter":
        reason = "tool_calls"
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    listed = (choice.get("logprobs") or {}).get("content")
    return _content(message.get("content")), reasoning, finish, reason, _tokens(listed)


def _content(content: Any) -> str:
    """A message's text; some services give it in parts."""
    if content is None or isinstance(content, str):
        return _text(content)
    return _text("".join(part["text"] for part in content if part["type"] == "text"))


def _completion(value: Mapping[str, Any]) -> _Read:
    choice = value["choices"][0]
    tokens = None
    if told := choice.get("logprobs"):
        tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
        tokens = [
            TextToken(_piece(token), float(logprob), tuple((_piece(t), float(v)) for t, v in (top or {}).items()))
            for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
        ]
    return _text(choice["text"]), "", choice.get("finish_reason"), None, tokens


def _response(value: Mapping[str, Any]) -> _Read:
    texts: list[str] = []
    reasoning: list[str] = []
    tokens: list[TextToken] = []
    reason = None
    for item in value["output"]:
        if item["type"] == "message":
            for part in item["content"]:
                if part["type"] == "refusal":
                    reason = "refused"
                elif part["type"] == "output_text":
                    texts.append(part["text"])
                    tokens += _tokens(part.get("logprobs")) or []
        elif item["type"] == "reasoning":
            reasoning += [part["text"] for part in item.get("content") or item.get("summary") or []]
        elif item["type"].endswith("_call"):
            reason = reason or "tool_calls"
    finish: str | None = {"completed": "stop", "failed": "error"}.get(str(value["status"]))
    if value["status"] == "incomplete":
        why = (value.get("incomplete_details") or {}).get("reason")
        finish = {"max_output_tokens": "length", "content_filter": "content_filter"}.get(str(why), str(why))
    return _text("".join(texts)), _text("\n".join(reasoning)), finish, reason, tokens or None


def _text(value: Any) -> str:
    """A text, "" for anything else. Surrogates that parts of a stream told apart are put together."""
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le") if isinstance(value, str) else ""


def _tokens(listed: Any) -> list[TextToken] | None:
    if not listed:
        return None
    return [
        TextToken(_bytes(t), float(t["logprob"]), tuple((_bytes(o), float(o["logprob"])) for o in t["top_logprobs"]))
        for t in listed
    ]


def _bytes(token: Mapping[str, Any]) -> bytes:
    given = token.get("bytes")
    return bytes(given) if given is not None else _piece(token["token"])


def _piece(token: str) -> bytes:
    """A token of the old completions api: its text, or `bytes:\\xNN…` where it is no whole character."""
    if token.startswith("bytes:"):
        return token.removeprefix("bytes:").encode("ascii").decode("unicode_escape").encode("latin-1")
    return token.encode()


def _of_text(tokens: list[TextToken], text: str, finish: str | None, count: int) -> tuple[TextToken, ...] | None:
    """The tokens whose bytes make the text; None where they do not.

    A service may tell of the end token too, as one more token after the whole text (vLLM: ``<eos>``): it is told with
    the bytes b"". A piece of a character may come without bytes, before the one that has them all (vLLM): among the
    likeliest such are left out, as they name no token.
    """
    whole = text.encode()
    if b"".join(token.text for token in tokens) != whole:
        *written, end = tokens
        if finish == "length" or not end.text or b"".join(token.text for token in written) != whole:
            return None
        tokens = [*written, TextToken(b"", end.logprob, end.top)]
    return tuple(TextToken(token.text, token.logprob, _best(token.top, count)) for token in tokens)


def _best(top: tuple[tuple[bytes, float], ...], count: int) -> tuple[tuple[bytes, float], ...]:
    """The `count` likeliest, each once: vLLM adds the written one, and names several tokens alike."""
    found: dict[bytes, float] = {}
    for text, logprob in sorted(top, key=lambda pair: -pair[1]):
        if text and len(found) < count:
            found.setdefault(text, logprob)
    return tuple(found.items())


def read_usage(value: Mapping[str, Any]) -> Usage | None:
    """Tokens read and written of an answer; None where it does not say."""
    told = value.get("usage")
    if not isinstance(told, dict):
        return None
    found = [told.get(new, told.get(old)) for new, old in _USAGE]
    read, written = (number if type(number) is int and 0 <= number < _TOO_MANY else None for number in found)
    return None if read is None or written is None else Usage(read, written)


_TOO_MANY = 1 << 40  # no call reads or writes so many tokens
_USAGE = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))


class Parts:
    """The parts of a streamed answer, put together to what the whole one would be."""

    def __init__(self, request: Request, key: Key) -> None:
        self._request, self._key = request, key
        self._whole: dict[str, Any] = {}
        self._final: dict[str, Any] | None = None
        self._texts: dict[str, list[str]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._calls = False
        self._finish: str | None = None
        self._begun = False

    @property
    def model(self) -> str | None:
        """The model's name, once a part has told it."""
        return _text(self._whole.get("model")) or None

    def add(self, part: Mapping[str, Any]) -> None:
        """One event's JSON. Raises Fault for an error among them."""
        with reading(part, self._key):
            self._add(part)

    def _add(self, part: Mapping[str, Any]) -> None:
        if part.get("error"):
            raise of_error_event(part["error"], self._key)
        if self._request.api == "responses":
            self._add_event(part)
            return
        self._whole |= {name: part[name] for name in ("model", "system_fingerprint", "usage") if part.get(name)}
        for choice in part.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            self._begun = True
            delta = choice.get("delta") or {"text": choice.get("text")}
            for name in ("content", "refusal", "reasoning_content", "reasoning", "text"):
                if isinstance(delta.get(name), str):
                    self._texts.setdefault(name, []).append(delta[name])
            self._calls |= bool(delta.get("tool_calls") or delta.get("function_call"))
            for name, listed in (choice.get("logprobs") or {}).items():
                self._logprobs.setdefault(name, []).extend(listed or [])
            self._finish = choice.get("finish_reason") or self._finish

    def _add_event(self, event: Mapping[str, Any]) -> None:
        inner = event.get("response")
        if event.get("type") == "error":
            raise of_error_event(dict(event), self._key)
        if isinstance(inner, dict):
            self._whole = dict(inner)
            if event.get("type") in ("response.completed", "response.incomplete", "response.failed"):
                self._final = dict(inner)

    def answer(self) -> Answer:
        """The answer. Raises Fault where the stream was cut: its end never came."""
        whole = self._end()
        with reading(whole, self._key):
            return read_value(self._request, whole, self._key)

    def _end(self) -> dict[str, Any]:
        if self._request.api == "responses":
            if self._final is None:
                raise Fault("failed", "the stream was cut: no end came", paid=True)
            return self._final
        if not self._begun or self._finish is None:
            raise Fault("failed", "the stream was cut: no finish_reason came", paid=True)
        joined: dict[str, Any] = {name: "".join(parts) for name, parts in self._texts.items()}
        choice: dict[str, Any] = {"finish_reason": self._finish, "logprobs": self._logprobs or None}
        if self._request.api == "chat":
            choice["message"] = {**joined, "tool_calls": self._calls}
        else:
            choice["text"] = joined.get("text", "")
        return {**self._whole, "choices": [choice]}
