"""Chat templates: what a template writes, and where in it the answers are.

A template is a program; nothing is assumed of it but what its renderings show. An answer is what follows the rendering
of the messages before it *with* the generation prompt, which is what a model is given when it has to answer; where
the rendering with the answer does not begin like that, there is nothing that may be trained. Answers that a later
turn rewrites (reasoning taken out of the history) are trained in a sequence of their own.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.rows import Message, bare

_FIRST_MASK = 0x10F000  # Plane 16 is for private use: no template or tokenizer gives its characters a meaning.
_PROBES = ("x0", "y1")  # two answers without a common end


class TemplateError(ValueError):
    """A template refuses messages, or writes them so that no answer can be told apart. `field` says which message."""

    def __init__(self, message: str, field: str = "messages", hint: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a conversation. `index` of its message; `text`: the rendering up to its end token, included.

    `start` … `content_end` … `len(text)`: where it begins, and where its end token begins. `shown`: whether the
    template writes the answer as it was given.
    """

    index: int
    text: str
    start: int
    content_end: int
    shown: bool


Segments = list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendering as (text, trained) segments, control tokens spelled in contents masked by one character each.

    `closed`: whether its last answer ends with an end token of the template's.
    """

    segments: Segments
    masks: Mapping[str, str]
    closed: bool = False

    def unmask(self, text: str) -> str:
        """A part of a segment's text with the control tokens of its contents spelled out again."""
        for mask, token in self.masks.items():
            text = text.replace(mask, token)
        return text


class Template:
    """A chat template over one tokenizer. Control tokens spelled in contents are masked while it renders.

    `text` of the template; `controls`: texts of the special tokens; `added`: of all added tokens, which may end a turn.
    """

    def __init__(self, hf: Any, text: str, controls: Sequence[str], added: Sequence[str]) -> None:
        self.text = text
        self._hf = hf
        self._controls = _alternatives(controls)
        self._added = _alternatives(added)

    def render(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """The template's text for messages whose contents are masked. Raises TemplateError with its own words."""
        try:
            text = self._hf.apply_chat_template(
                [bare(message) for message in messages],
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # a template is a program of somebody else's: it may raise anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TemplateError(f"the chat template refuses these messages: {said}") from error
        return str(text)

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """The text that a model is given to answer `messages`, cut where earlier answers begin and end."""
        masked, masks = self._mask(messages)
        text = self._prompt_text(masked)
        answers = [answer for answer in self._answers(masked, frozenset()) if text.startswith(answer.text)]
        return Rendered(_cut(text, answers, ()), masks)

    def conversations(
        self, messages: Sequence[Message], trained: Sequence[int], *, ended: bool = True
    ) -> tuple[list[Rendered], bool]:
        """The rendering of each sequence that trains the answers `trained` (their indexes), and whether all are shown.

        Mostly one sequence; more where a later turn rewrites an answer. Without `ended`, the last message's end token
        is left out (it was cut by a limit). Raises TemplateError.
        """
        masked, masks = self._mask(messages)
        every = self._answers(masked, frozenset(trained))
        todo = [answer for answer in every if answer.index in trained]
        shown = all(answer.shown for answer in todo)
        sequences: list[Rendered] = []
        while todo:
            last = todo[-1]
            inside = [a for a in every if a.index <= last.index and last.text.startswith(a.text)]
            indexes = {answer.index for answer in todo} & {answer.index for answer in inside}
            text = last.text
            closed = last.content_end < len(text)
            if not ended and last.index == len(messages) - 1:
                text = text[: last.content_end]
            sequences.append(Rendered(_cut(text, inside, indexes), masks, closed))
            todo = [answer for answer in todo if answer.index not in indexes]
        return sequences[::-1], shown

    def end_token(self) -> str | None:
        """The added token that closes an answer, None where the template has none."""
        try:
            tail = self._tail([{"role": "user", "content": "q"}])
        except TemplateError:
            return None
        match = self._added.search(tail) if self._added else None
        return match.group() if match else None

    def opens_turns(self, token: str) -> bool:
        """Whether `token` opens turns, not sequences: it is there a second time where the answer has to begin."""
        try:
            return self._prompt_text([{"role": "user", "content": "q"}]).count(token) > 1
        except TemplateError:
            return False

    def _mask(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Messages with one private character for each spelled control token, and what each character stands for."""
        if self._controls is None:
            return list(messages), {}
        texts = [value for message in messages for value in message.values() if isinstance(value, str)]
        used = set("".join(texts))
        found = {token for text in texts for token in self._controls.findall(text)}
        by_token: dict[str, str] = {}
        number = _FIRST_MASK
        for token in sorted(found):
            while chr(number) in used:
                number += 1
            by_token[token] = chr(number)
            number += 1
        if not by_token:
            return list(messages), {}
        controls = self._controls
        masked = [
            {
                key: controls.sub(lambda match: by_token[match.group()], value)
                if isinstance(value, str) and key != "role"
                else value
                for key, value in message.items()
            }
            for message in messages
        ]
        return masked, {mask: token for token, mask in by_token.items()}

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        """Rendering with the generation prompt; where the template has none, with the header of an answer."""
        text = self.render(messages, generation=True)
        if text != self.render(messages):
            return text
        first, second = self._probe(messages, text)
        header = first[: _common(first, second)]
        # Only a header with a control token is one: a space before the answer is the answer's.
        return text + header if self._added and self._added.search(header) else text

    def _probe(self, messages: Sequence[Message], start: str) -> tuple[str, str]:
        """What the template writes for two different answers behind `start`."""
        texts = [self.render([*messages, {"role": "assistant", "content": probe}]) for probe in _PROBES]
        if not all(text.startswith(start) for text in texts) or texts[0] == texts[1]:
            raise TemplateError(
                "the chat template does not write an answer behind its own generation prompt",
                hint="no token of it is what the model would see; name a template that does in data.chat_template",
            )
        return texts[0][len(start) :], texts[1][len(start) :]

    def _tail(self, messages: Sequence[Message], answer: str = "") -> str:
        """What the template writes behind an answer to `messages` that begins like `answer`."""
        first, second = (
            self.render([*messages, {"role": "assistant", "content": answer + probe}]) for probe in _PROBES
        )
        if first == second:
            raise TemplateError("the chat template does not write answers", hint="name another in data.chat_template")
        length = _common(first[::-1], second[::-1])
        return first[len(first) - length :]

    def _answers(self, messages: Sequence[Message], needed: Container[int]) -> list[Answer]:
        """Every answer that can be told apart; raises TemplateError for one of `needed` that cannot."""
        found: list[Answer] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                found.append(self._answer(messages, index))
            except TemplateError as error:
                if index in needed:
                    raise TemplateError(str(error), f"messages[{index}]", error.hint) from error
        return found

    def _answer(self, messages: Sequence[Message], index: int) -> Answer:
        before = messages[:index]
        if not before:
            raise TemplateError("an answer without a message before it cannot be trained", hint="set its weight to 0")
        start = self._prompt_text(before)
        tail = self._tail(before, messages[index]["content"])
        text = self.render(messages[: index + 1])
        if not text.startswith(start) or not text.endswith(tail) or len(text) < len(start) + len(tail):
            raise TemplateError(
                "the chat template does not write this answer behind its own generation prompt",
                hint="no token of it is what the model would see; name a template that does in data.chat_template",
            )
        content_end = len(text) - len(tail)
        match = self._added.search(tail) if self._added else None
        stop = content_end + (match.end() if match else 0)
        shown = messages[index]["content"].strip() in text[len(start) : content_end]
        return Answer(index, text[:stop], len(start), content_end, shown)


def _alternatives(tokens: Sequence[str]) -> re.Pattern[str] | None:
    names = sorted((token for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def _common(first: str, second: str) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _cut(text: str, answers: Sequence[Answer], trained: Container[int]) -> Segments:
    """`text` cut at the answers' edges."""
    segments: Segments = []
    place = 0
    for answer in answers:
        stop = min(len(answer.text), len(text))
        segments += [(text[place : answer.start], False), (text[answer.start : stop], answer.index in trained)]
        place = stop
    segments.append((text[place:], False))
    return [(part, is_trained) for part, is_trained in segments if part]
