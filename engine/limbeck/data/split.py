"""Which rows are held out: by content, never the same prompt on both sides."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

from limbeck.data.rows import Row

_MOST_SUMS = 20_000_000
# Control and format characters (Cc, Cf), and the others that Unicode tells a program not to show.
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    r"\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def split_groups(rows: Sequence[Row]) -> list[str]:
    """For each row the name of its group; a group must be on one side.

    Rows with the same prompt are one group; of a conversation that is the first user turn, with or without what stands
    before it. A text row is with each row whose prompt it begins with, and so is a row whose prompt ends within its
    answer, as if cut elsewhere. Case, white space, Unicode form and characters that nobody sees make no difference.
    """
    lines = sorted((text, mark, number) for number, row in enumerate(rows) for mark, text in _lines(row))
    groups = _Groups(len(rows))
    begun: list[tuple[str, int]] = []  # the prompts that this text begins with, longest last, and a row of each
    for text, mark, number in lines:
        while begun and not text.startswith(begun[-1][0]):
            begun.pop()
        if mark != _PROMPT:
            for prompt, other in reversed(begun):
                if not prompt or len(prompt) < mark:
                    break
                groups.join(number, other)
        elif begun and begun[-1][0] == text:
            groups.join(number, begun[-1][1])
        else:
            begun.append((text, number))
    return groups.names([_name(row) for row in rows])


_PROMPT = -1  # marks a prompt; the mark of prompt and answer together is the length of the prompt


def _lines(row: Row) -> Iterator[tuple[int, str]]:
    """(mark, words) of what a row asks, and of what it asks and says.

    Sorted by words, a prompt comes before itself as a text, and before all that begins with it.
    """
    if row.format == "text":
        words = _words(row.value["text"])
        yield from ((_PROMPT, words), (0, words))
        return
    prompt = row.value["messages"] if "messages" in row.value else row.value["prompt"]
    before = after = ""
    if not isinstance(prompt, str):
        contents = [str(message["content"]) for message in prompt]
        first = _first_user(prompt)
        before, prompt, after = "".join(contents[:first]), contents[first], "".join(contents[first + 1 :])
    answers = [row.value[key] for key in ("completion", "chosen", "rejected") if key in row.value]
    texts = [answer if isinstance(answer, str) else str(answer[0]["content"]) for answer in answers]
    for opening in dict.fromkeys((prompt, before + prompt)):
        words = _words(opening)
        yield _PROMPT, words
        yield from ((len(words), _words(opening + after + text)) for text in texts or [""])


def _first_user(messages: Sequence[dict[str, object]]) -> int:
    return next(place for place, message in enumerate(messages) if message["role"] == "user")


def _name(row: Row) -> str:
    """The prompt of a row, by which its group is put in order."""
    prompt = row.value.get("text") or row.value.get("messages") or row.value["prompt"]
    if not isinstance(prompt, str):
        prompt = prompt[_first_user(prompt)]["content"]
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def _words(text: str) -> str:
    """A text without what makes no difference."""
    text = _seen(text)
    if text.isascii():
        return text.lower()
    # Folding may give signs that are to be folded, and a sign may be taken apart into a space and a mark.
    for _ in range(2):
        text = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKD", _seen(text))


def _seen(text: str) -> str:
    return "".join(_UNSEEN.sub("", text).split())


class _Groups:
    """Rows that belong together, directly or by way of others."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def _top(self, row: int) -> int:
        while self._above[row] != row:
            self._above[row] = self._above[self._above[row]]
            row = self._above[row]
        return row

    def join(self, one: int, other: int) -> None:
        """Put the groups of two rows together."""
        self._above[self._top(one)] = self._top(other)

    def names(self, names: Sequence[str]) -> list[str]:
        """For each row the first name, in alphabetical order, of those of its group."""
        first: dict[int, str] = {}
        for row, name in enumerate(names):
            top = self._top(row)
            first[top] = min(first.get(top, name), name)
        return [first[self._top(row)] for row in range(len(names))]


def held_out(keys: Sequence[str], holdout: float | int, seed: int) -> list[bool]:
    """For each row, by the key of each, whether it is held out.

    `holdout` below 1 is a fraction of the rows, else a number of rows; whole groups of one key are taken, in an order
    that depends on the seed and their content only, so that the number is met as closely as groups allow. At least one
    group is left to train on.
    """
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    wanted = round(len(keys) * holdout) if holdout < 1 else int(holdout)
    order = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    chosen = _closest([sizes[key] for key in order], min(wanted, len(keys)))
    if len(chosen) == len(order) and order:
        chosen.discard(len(order) - 1)
    taken = {order[index] for index in chosen}
    return [key in taken for key in keys]


def _closest(sizes: Sequence[int], wanted: int) -> set[int]:
    """Indexes of the sizes whose sum is closest to `wanted`; the first ones where there is a choice."""
    greedy: set[int] = set()
    total = 0
    for index, size in enumerate(sizes):
        if total + size <= wanted:
            greedy.add(index)
            total += size
    if total == wanted or wanted * len(sizes) > _MOST_SUMS:
        return greedy
    # Every sum that can be reached, up to the first beyond `wanted`, with the last index it took.
    limit = wanted + min(wanted - total, min(sizes))
    reached: dict[int, tuple[int, int] | None] = {0: None}
    for index, size in enumerate(sizes):
        for before in list(reached):
            if before + size <= limit and before + size not in reached:
                reached[before + size] = (before, index)
    total = min(reached, key=lambda value: (abs(value - wanted), value))
    chosen: set[int] = set()
    while (step := reached[total]) is not None:
        total, index = step
        chosen.add(index)
    return chosen
