"""Where paths from the network may lead: followed step by step, so that nothing outside is ever looked at."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_BYTES = 4096  # of a path, by Linux's own rule
MOST_ENTRIES = 20_000  # of a folder that is looked through for links
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL = re.compile(r"(file|unix|unix-abstract|vsock):", re.IGNORECASE)


class Borders:
    """The workspace, in which a recipe may read and write, and folders that it may read besides."""

    def __init__(self, root: Path, read: Sequence[Path]) -> None:
        self.root = Path(os.path.realpath(root))
        self.read = tuple(Path(os.path.realpath(folder)) for folder in read)
        named = [(os.path.abspath(root), self.root), (str(self.root), self.root)]
        for given, real in zip(read, self.read, strict=True):
            named += [(os.path.abspath(given), real), (str(real), real)]
        self._named = sorted(named, key=lambda pair: len(pair[0]), reverse=True)  # the innermost first

    def follow(self, written: str) -> Path | None:
        """Where a path leads, its links followed; None where it leads, or would go by the way, outside.

        Only what lies inside is looked at, so that the answer says nothing of what is outside.
        """
        if not written or written.startswith("~") or not _plain(written):
            return None
        if _SCHEME.match(written) or _LOCAL.match(written):
            return None
        start, parts = self._start(written)
        if start is None:
            return None
        place = start
        for part in parts:
            if part in ("", "."):
                continue
            place = place.parent if part == ".." else place / part
            if os.path.islink(place):
                place = Path(os.path.realpath(place))  # whoever made the link could reach what it names
            if not self.holds(place):
                return None
        return place

    def strays(self, text: str) -> bool:
        """Whether a text that nothing marks as a path would, as one, lead outside."""
        if is_path(text):
            return self.follow(text) is None
        place = self.root
        for part in text.split("/") if _plain(text) else ():
            place = place / part
            if os.path.islink(place):
                place = Path(os.path.realpath(place))
                if not self.holds(place):
                    return True
        return not self.holds(place) and os.path.lexists(place)  # of the server's own that is hidden

    def holds(self, place: Path) -> bool:
        """Whether a real path lies inside. What is hidden in the workspace is not a recipe's to read or write."""
        if place.is_relative_to(self.root):
            return not any(part.startswith(".") for part in place.relative_to(self.root).parts)
        return any(place.is_relative_to(folder) for folder in self.read)

    def reaches(self, place: Path) -> bool:
        """Whether a run's process can read a real path: the kernel does not keep it from what is hidden."""
        return any(place.is_relative_to(folder) for folder in (self.root, *self.read))

    def leak(self, folder: Path) -> str | None:
        """A link in `folder`, relative to it, that leads outside; None where the first 20,000 entries have none."""
        for entry in _entries(folder):
            if entry.is_symlink() and not self.holds(Path(os.path.realpath(entry))):
                return str(entry.relative_to(folder))
        return None

    def _start(self, written: str) -> tuple[Path | None, list[str]]:
        """The folder that a path begins in, and its parts from there."""
        if not written.startswith("/"):
            return self.root, written.split("/")
        plain = re.sub("/+", "/", written)
        for name, real in self._named:
            if plain == name or plain.startswith(name.rstrip("/") + "/"):
                return real, plain[len(name) :].split("/")
        return None, []


def is_path(text: str) -> bool:
    """Whether a text that nothing marks as a path looks like one that may lead outside."""
    if _LOCAL.match(text):
        return True
    if _SCHEME.match(text):
        return False
    words = text.split()
    first = words[0] if words else ""
    rooted = first.startswith("/") and "/" in first.strip("/")  # "/think" is no path
    return rooted or first.startswith("~/") or ".." in text.split("/")


def _plain(text: str) -> bool:
    """Whether a text can be the name of a file at all."""
    if len(text) > MOST_BYTES or any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return False
    return len(text.encode()) < MOST_BYTES and all(len(part.encode()) < 256 for part in text.split("/"))


def _entries(folder: Path) -> Iterator[Path]:
    seen = 0
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            seen += 1
            if seen > MOST_ENTRIES:
                return
            yield Path(parent, name)
