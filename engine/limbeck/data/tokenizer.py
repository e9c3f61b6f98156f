"""A tokenizer folder as Limbeck reads it: one rule for <bos>, no control token out of content, digests of contents."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.data import offsets as byte_offsets
from limbeck.data.chat import Rendered, Template, TemplateError
from limbeck.data.folder import Source, bos_rule, eos_ids, read_source, template_text
from limbeck.data.rows import Message
from limbeck.errors import LimbeckError, Problem, Reason

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text to encode on its own, or, with `control`, one control token (`text` is how it is shown)."""

    text: str
    trained: bool
    control: int | None = None


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with its chat template.

    `hf` is the transformers tokenizer. Its inside, special tokens too, belongs to all in this process who read the
    folder: not to be changed. `bos_id` leads every sequence, None for none; see :meth:`load` for the rule.
    `eos_ids`: every id that ends a text, the one that is appended to completions first. `vocab_size`: largest id + 1.
    """

    hf: Any
    folder: Path
    bos_id: int | None
    eos_ids: tuple[int, ...]
    vocab_size: int
    template: Template | None
    controls: dict[str, int] = field(repr=False)  # text of each special token
    source: Source = field(repr=False)
    strips_bos: bool = True  # a <bos> that the template writes first is taken off (and the one of the rule put there)

    @classmethod
    def load(cls, folder: Path, *, bos: str = "auto", chat_template: Path | None = None) -> Tokenizer:
        """Read a folder. Raises MODEL_INVALID where it holds no usable tokenizer, EXTRA_MISSING without transformers.

        `bos`: ``always`` exactly one at position 0 of every sequence; ``never``: none there; ``auto``: exactly one,
        unless the tokenizer has none, it is the end token too, ``add_bos_token`` is false in tokenizer_config.json,
        or the chat template opens every turn with it. A file `chat_template` replaces the folder's template.
        """
        folder = Path(folder)
        read = read_source(folder)
        hf = read.hf()
        text = template_text(hf, folder, chat_template)
        if text is not None:
            hf.chat_template = text
        controls = {token.content: int(number) for number, token in hf.added_tokens_decoder.items() if token.special}
        added = tuple(token.content for token in hf.added_tokens_decoder.values() if token.content.strip())
        template = Template(hf, text, tuple(controls), added) if text is not None else None
        ends = eos_ids(hf, folder, template)
        bos_id, strips = bos_rule(hf, folder, bos, template)
        size = max(hf.get_vocab().values(), default=-1) + 1
        return cls(hf, folder, bos_id, ends, size, template, controls, read, strips)

    @property
    def has_template(self) -> bool:
        """Whether chat messages can be rendered."""
        return self.template is not None

    @property
    def digest(self) -> str:
        """sha256 of what turns text into ids: all of the tokenizer but post-processor, padding and truncation."""
        return self.source.digest

    @cached_property
    def template_digest(self) -> str | None:
        """sha256 of the chat template's text, None without one."""
        return hashlib.sha256(self.template.text.encode()).hexdigest() if self.template else None

    def encode_prompt(self, prompt: str | list[Message]) -> Ids:
        """Ids int32 [t] of a prompt, the leading <bos> there; chat messages with the template's generation prompt.

        They are the first ids of the sequence of a row with this prompt. Raises DATA_INVALID where there is no
        template or it refuses the messages.
        """
        if isinstance(prompt, str):
            pieces = [Piece(prompt, False)]
        else:
            try:
                pieces = self.pieces(self._template().prompt(prompt))
            except TemplateError as error:
                raise LimbeckError(Reason.DATA_INVALID, problems=[Problem(str(error), hint=error.hint)]) from error
        return self.encode(pieces)[0]

    def decode(self, ids: Any) -> str:
        """The text of ids, special tokens skipped. Ids that do not begin with <bos> go on from other text."""
        numbers = [int(i) for i in ids]
        if not self._puts_space or numbers[:1] == [self.hf.bos_token_id]:
            return self._decode(numbers)
        # Such a tokenizer drops the space of the first token, which is the text's own where it goes on from a prompt.
        anchor = list(self._plain.encode("a", add_special_tokens=False).ids)
        start, text = self._decode(anchor), self._decode(anchor + numbers)
        return text[len(start) :] if text.startswith(start) else self._decode(numbers)

    def _decode(self, numbers: list[int]) -> str:
        return str(self.hf.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, number: int) -> str:
        """How one token is spelled in the vocabulary."""
        return str(self.hf.convert_ids_to_tokens(int(number)))

    def token_bytes(self, number: int) -> bytes:
        """The bytes of a text that one token stands for; those of its name for a special token."""
        return byte_offsets.spelled_bytes(self.token_text(number), byte_level=self.source.byte_level)

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The id of each run of bytes that exactly one token stands for, special tokens left out.

        Tokens of a lone byte (``<0x41>``) are for what no other token stands for, as the tokenizer itself takes them.
        """
        words: dict[bytes, list[int]] = {}
        lone: dict[bytes, list[int]] = {}
        for text, number in self.hf.get_vocab().items():
            if number not in self._control_ids:
                found = lone if byte_offsets.is_lone_byte(text) and not self.source.byte_level else words
                found.setdefault(self.token_bytes(number), []).append(int(number))
        return {raw: numbers[0] for raw, numbers in {**lone, **words}.items() if len(numbers) == 1}

    def is_control(self, number: int) -> bool:
        """Whether an id is a special token."""
        return int(number) in self._control_ids

    def blank(self, answer: str) -> bool:
        """Whether nothing but special tokens, spelled out, and white space is in a text."""
        return self._controls_pattern is not None and not self._controls_pattern.sub("", answer).strip()

    def escape(self, text: str) -> str:
        """A text with a backslash before everything that spells a control token."""
        return text if self._controls_pattern is None else self._controls_pattern.sub(r"\\\g<0>", text)

    def pieces(self, rendered: Rendered) -> list[Piece]:
        """A rendering cut at its control tokens, with what its contents spelled put back as plain text.

        A <bos> that the template wrote first is left out where the rule of `bos_id` is in force.
        """
        found: list[Piece] = []
        for text, trained in rendered.segments:
            place = 0
            for match in self._spaced_pattern.finditer(text) if self._spaced_pattern else ():
                if match.start() > place:
                    found.append(Piece(rendered.unmask(text[place : match.start()]), trained))
                name = match.group("token")
                found.append(Piece(name, trained, self.controls[name]))
                place = match.end()
            if place < len(text):
                found.append(Piece(rendered.unmask(text[place:]), trained))
        if self.strips_bos:
            while found and found[0].control is not None and found[0].control == self.hf.bos_token_id:
                found.pop(0)
        return found

    def encode(self, pieces: list[Piece]) -> tuple[Ids, npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
        """(ids int32 [t], trained bool [t], byte offsets int32 [t, 2]) of pieces, the leading <bos> put there.

        Each piece is encoded by itself and never gives a control token. Offsets are byte ranges in the text of all
        pieces but the control tokens, which have (0, 0). Token 0 is never trained.
        """
        ids: list[int] = [] if self.bos_id is None else [self.bos_id]
        trained: list[bool] = [False] * len(ids)
        offsets: list[tuple[int, int]] = [(0, 0)] * len(ids)
        start = 0
        first = True
        after_control = False
        for piece in pieces:
            if piece.control is not None:
                ids.append(piece.control)
                trained.append(piece.trained)
                offsets.append((0, 0))
                after_control = True
                continue
            if not piece.text:
                continue
            new, ranges = self._encode_text(piece.text, continues=not (first or (after_control and self._opens_again)))
            ids += new
            trained += [piece.trained] * len(new)
            offsets += [(start + low, start + high) for low, high in ranges]
            start += len(piece.text.encode())
            first = after_control = False
        if trained:
            trained[0] = False  # nothing comes before it that could predict it
        return (
            np.array(ids, dtype=np.int32),
            np.array(trained, dtype=np.bool_),
            np.array(offsets, dtype=np.int32).reshape(len(ids), 2),
        )

    def _template(self) -> Template:
        if self.template is None:
            hint = "name a Jinja file in data.chat_template, or use a tokenizer that has one"
            problem = Problem("the tokenizer has no chat template", file=str(self.folder), hint=hint)
            raise LimbeckError(Reason.DATA_INVALID, problems=[problem])
        return self.template

    def _encode_text(self, text: str, *, continues: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and byte ranges of a text; where it `continues` another, no space is put before it."""
        if continues and self._puts_space:
            # A tokenizer of SentencePiece's kind begins every text with a space; behind a newline it does not.
            encoding = self._plain.encode("\n" + text, add_special_tokens=False)
            cut = next((i for i, (low, high) in enumerate(encoding.offsets) if high > 1), len(encoding.ids))
            if cut < len(encoding.ids) and encoding.offsets[cut][0] == 1:
                chars = [(low - 1, high - 1) for low, high in encoding.offsets[cut:]]
                ranges = byte_offsets.byte_ranges(text, encoding.tokens[cut:], chars, byte_level=self.source.byte_level)
                return list(encoding.ids[cut:]), ranges
        encoding = self._plain.encode(text, add_special_tokens=False)
        ranges = byte_offsets.byte_ranges(text, encoding.tokens, encoding.offsets, byte_level=self.source.byte_level)
        return list(encoding.ids), ranges

    @cached_property
    def _plain(self) -> Any:
        """A copy of the fast tokenizer that reads special tokens as text; `hf` sets modes on its own at each call."""
        import tokenizers

        plain = tokenizers.Tokenizer.from_str(self.source.json)
        plain.no_padding()
        plain.no_truncation()
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _puts_space(self) -> bool:
        tokens = self._plain.encode("a", add_special_tokens=False).tokens
        return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))

    @cached_property
    def _opens_again(self) -> bool:
        """Whether a text behind a control token begins as a new text does (with a space put before it)."""
        if not self._puts_space or not self.controls:
            return True
        tokens = self.hf.backend_tokenizer.encode(next(iter(self.controls)) + "a", add_special_tokens=False).tokens
        return len(tokens) > 1 and tokens[1].startswith(("▁", "Ġ"))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.controls.values())

    @cached_property
    def _controls_pattern(self) -> re.Pattern[str] | None:
        names = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    @cached_property
    def _spaced_pattern(self) -> re.Pattern[str] | None:
        """Control tokens with the white space that lstrip and rstrip take in."""
        if self._controls_pattern is None:
            return None
        added = self.hf.added_tokens_decoder.values()
        left = [re.escape(token.content) for token in added if token.special and token.lstrip]
        right = [re.escape(token.content) for token in added if token.special and token.rstrip]
        before = rf"(?:\s+(?={'|'.join(left)}))?" if left else ""
        after = f"(?:(?<={')|(?<='.join(right)})\\s+)?" if right else ""
        return re.compile(f"{before}(?P<token>{self._controls_pattern.pattern}){after}")
