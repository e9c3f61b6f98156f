"""Why a try gave no answer, and what that means for the next one."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from limbeck_openai.keys import Key
from limbeck_openai.tally import Usage

Kind = Literal["nobody", "failed", "limited", "row", "unclear", "all", "mismatch"]
SHOWN = 200  # bytes of a service's words that are repeated
_ROW = re.compile(
    r"context.?length|maximum context|max_model_len|too long|too large|string_above_max_length|content.?(policy|filter|"
    r"management)|safety|moderation|flagged|invalid_prompt",
    re.IGNORECASE,
)
_ALL = re.compile(r"model_not_found|unsupported_(parameter|value)|unknown_parameter|invalid_api_key", re.IGNORECASE)
_QUOTA = re.compile(r"insufficient_quota|billing|exceeded your current quota|credit balance", re.IGNORECASE)
_AGAIN = (408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)


class Fault(Exception):
    """A try without an answer. `words` are the service's or ours, without the key.

    - `nobody`: no connection could be made. `failed`: may go better next time. `limited`: 429, to wait.
    - `row`: this prompt cannot be answered. `all`: no prompt can be. `unclear`: refused, and which of both is not said.
    - `mismatch`: another model answered.

    `paid`: the service may have written something for it; `usage`: how much, where it said so. `wait`: seconds to keep
    still that the service named, None where it named none; `pause`: whether to keep still at all before the next try.
    """

    def __init__(
        self,
        kind: Kind,
        words: str,
        *,
        paid: bool = False,
        usage: Usage | None = None,
        wait: float | None = None,
        pause: bool = True,
    ) -> None:
        super().__init__(words)
        self.kind, self.words, self.paid, self.usage, self.wait, self.pause = kind, words, paid, usage, wait, pause


def shown(raw: bytes | str) -> str:
    """The first bytes of what a service sent, in one line."""
    text = raw.encode("utf-8", "backslashreplace") if isinstance(raw, str) else raw
    return " ".join(text[:SHOWN].decode("utf-8", "replace").split())


def of_status(status: int, body: str, wait: float | None, key: Key) -> Fault:
    """The fault of an answer with an error's status."""
    words = f"{status}: {shown(key.hide(_words(body)))}"
    if status == 429:
        return Fault("all" if _QUOTA.search(body) else "limited", words, wait=wait)
    if status in _AGAIN or status >= 500:
        return Fault("failed", words, wait=wait)
    if status == 413 or (status in (400, 403, 422) and _ROW.search(body)):
        return Fault("row", words)
    if status in (400, 422) and not _ALL.search(body):
        return Fault("unclear", words)
    return Fault("all", words)


def _words(body: str) -> str:
    """The message of an error's JSON, or the text as it is."""
    try:
        value: Any = json.loads(body)
    except ValueError:
        return body
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else body


def of_error_event(error: Any, key: Key) -> Fault:
    """The fault of an error that came as JSON within an answer with status 200."""
    code = error.get("code") if isinstance(error, dict) else None
    status = int(str(code)) if re.fullmatch("[45][0-9][0-9]", str(code)) else 500
    fault = of_status(status, json.dumps({"error": error}, ensure_ascii=False), None, key)
    fault.paid = True
    return fault
