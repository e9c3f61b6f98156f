"""The API key: read from the environment, sent, and never seen again."""

from __future__ import annotations

import logging
import os
from typing import Any

from limbeck.errors import LimbeckError, Problem, Reason

HIDDEN = "[key]"
# Those of the transport that tell, at level DEBUG, what a service sent. A filter of a logger is not its children's.
_LOGGERS = ("httpcore2.connection", "httpcore2.http11", "httpcore2.http2", "httpcore2.proxy", "httpx2", "openai")


class Key:
    """An API key that shows itself to nobody. `value` is empty where none is sent."""

    __slots__ = ("value",)

    def __init__(self, value: str = "") -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Key({HIDDEN if self.value else ''})"

    def hide(self, text: str) -> str:
        """`text` without the key: services repeat it in their errors."""
        return text.replace(self.value, HIDDEN) if self.value else text

    def hide_in(self, value: Any) -> Any:
        """A JSON value without the key in its texts."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {name: self.hide_in(inner) for name, inner in value.items()}
        return [self.hide_in(inner) for inner in value] if isinstance(value, list) else value

    def hide_in_logs(self) -> None:
        """Take the key out of what the HTTP libraries log, for as long as this process lives."""
        if not self.value:
            return
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._hide_in_record)

    def _hide_in_record(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if self.value in text:
            record.msg, record.args = self.hide(text), ()
        return True


def read_key(variable: str | None) -> Key:
    """The key that the variable holds. A final newline and a byte order mark are taken off.

    Raises TEACHER_REFUSED where it is not set or cannot be a key; the message never shows its value.
    """
    if variable is None:
        return Key()
    value = os.environ.get(variable, "").removeprefix("\ufeff").strip()
    if value and value.isascii() and value.isprintable() and " " not in value:
        return Key(value)
    fault = "holds spaces, line breaks or other signs that no key has" if value else "is not set, or empty"
    hint = f"export {variable}=…, or name another variable in key_env"
    problem = Problem(f"the environment variable {variable} {fault}", field="key_env", hint=hint)
    raise LimbeckError(Reason.TEACHER_REFUSED, "The API key cannot be read.", [problem])
