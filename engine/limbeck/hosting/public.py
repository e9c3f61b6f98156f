"""Texts on their way to a client: without the paths of this machine."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?<![\w.:/])~?/(?:[^\s/'\",;:]+/)+(?=[^\s/'\",;:]|)")


def without_paths(text: str) -> str:
    """A text that clients see: of each path only its last name is left."""
    return _PATH.sub("…/", text)
