"""Rows become token sequences: what is trained, what is cut off, what is held out, what is set aside."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from limbeck.data.chat import TemplateError
from limbeck.data.rationale import dropped, inside
from limbeck.data.rows import Message, Row
from limbeck.data.sequence import TokenSequence
from limbeck.data.split import held_out, split_groups
from limbeck.data.tokenizer import Piece, Tokenizer
from limbeck.errors import LimbeckError, Problem, Reason, counted

if TYPE_CHECKING:
    from limbeck.recipe import DataSpec, RationaleSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of the rows.

    `train` and `holdout`: sequences, each split's `index` and `pair` counted from 0. `bad`: problems of the rows that
    were set aside. `notes`: what a person should know of rows that are used, such as an answer cut by the limit.
    `figures`: counts by name, of rows, sequences, tokens and bytes.
    """

    train: list[TokenSequence]
    holdout: list[TokenSequence]
    bad: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The sequences of one row. `lost_tokens` and `lost_bytes` were trained ones that the limit cut off.

    `rationale`: tokens of the answers' rationale, None where there is none; 0 where it was dropped.
    """

    sequences: list[TokenSequence]
    notes: list[Problem]
    truncated: bool = False
    lost_tokens: int = 0
    lost_bytes: int = 0
    rationale: int | None = None


class _Bad(Exception):
    """A row that must not be trained."""

    def __init__(self, message: str, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


def prepare(
    rows: Sequence[Row], problems: Sequence[Problem], tokenizer: Tokenizer, spec: DataSpec, *, limit: int | None = None
) -> Prepared:
    """Token sequences of rows, split. `problems` are those of :func:`read_rows`; `limit`: the first rows only.

    Raises DATA_INVALID with every problem of every row (under ``on_bad_row: quarantine`` only for faults that no row
    can be blamed for), NOTHING_TO_TRAIN where no row is left.
    """
    rows = rows[:limit] if limit is not None else rows
    chat = next((row for row in rows if _is_chat(row)), None)
    if chat is not None and not tokenizer.has_template:
        hint = "name a Jinja file in data.chat_template, or use a tokenizer that has one"
        what = "a row of chat messages, but the tokenizer has no chat template"
        problem = Problem(what, file=chat.source, line=chat.line, hint=hint)
        raise LimbeckError(Reason.DATA_INVALID, problems=[*problems, problem])
    good: list[tuple[Row, _Encoded]] = []
    bad = list(problems)
    for row in rows:
        try:
            good.append((row, _encode(row, tokenizer, spec.max_length, spec.rationale)))
        except _Bad as fault:
            bad.append(Problem(str(fault), file=row.source, line=row.line, field=fault.field, hint=fault.hint))
    files = {file: place for place, file in reversed(list(enumerate(p.file for p in [*bad] if p.file)))}
    bad.sort(key=lambda p: (files.get(p.file or "", -1), p.line or 0))
    bad_rows = {(problem.file, problem.line) for problem in bad if problem.line}
    whole = [problem for problem in bad if not problem.line]  # a file that cannot be read, say
    if whole or (bad and spec.on_bad_row == "error"):
        raise LimbeckError(Reason.DATA_INVALID, _summary(len(good), len(good) + len(bad_rows)), bad)
    if not good:
        raise LimbeckError(Reason.NOTHING_TO_TRAIN, problems=bad or [Problem("there is no row")])
    return _assemble(good, bad, len(bad_rows), spec)


def answer_ids(
    prompt: str | list[Message], answer: str, finish_reason: str, tokenizer: Tokenizer
) -> npt.NDArray[np.int32] | None:
    """Ids int32 [t] that an answer to a prompt is trained as, without end tokens; None where it cannot be trained."""
    row = Row("", 0, {"prompt": prompt, "completion": answer, "finish_reason": finish_reason}, "completion")
    try:
        (sequence,) = _encode(row, tokenizer, sys.maxsize).sequences
    except _Bad:
        return None
    ids = sequence.ids[sequence.trained]
    inner = [place for place, number in enumerate(ids.tolist()) if not tokenizer.is_control(number)]
    return ids[: inner[-1] + 1 if inner else 0]


def retokenized(value: Mapping[str, Any]) -> bool:
    """Whether a row says that a teacher wrote its answer in other tokens than its text gives."""
    lineage = value.get("lineage")
    return isinstance(lineage, dict) and lineage.get("retokenized") is True


def _summary(good: int, rows: int) -> str:
    verb = "is" if rows == 1 else "are"
    return f"{good:,} of {counted(rows, 'rows')} {verb} valid." if rows else "No row could be read."


def _assemble(good: list[tuple[Row, _Encoded]], bad: list[Problem], bad_rows: int, spec: DataSpec) -> Prepared:
    if spec.holdout >= 1 and spec.holdout >= len(good):
        what = f"{spec.holdout} rows are to be held out, but only {len(good)} are valid: none is left to train on"
        raise LimbeckError(Reason.DATA_INVALID, problems=[Problem(what, field="data.holdout")])
    sides: tuple[list[TokenSequence], list[TokenSequence]] = ([], [])
    pairs = [0, 0]
    held = held_out(split_groups([row for row, _ in good]), spec.holdout, spec.seed)
    notes = [note for _, encoded in good for note in encoded.notes]
    for (row, encoded), side in zip(good, held, strict=True):
        pair = pairs[side] if row.format == "preference" else -1
        pairs[side] += row.format == "preference"
        for sequence in encoded.sequences:
            sides[side].append(replace(sequence, index=len(sides[side]), pair=pair))
    train, holdout = sides
    if spec.holdout and not holdout:
        what = "nothing is held out: too few different prompts for it"
        notes.append(Problem(what, field="data.holdout"))
    every = train + holdout
    figures = {
        "rows": len(good) + bad_rows,
        "bad_rows": bad_rows,
        "quarantined": bad_rows,
        "train_sequences": len(train),
        "holdout_sequences": len(holdout),
        "holdout_rows": sum(held),
        "split_rows": sum(row.format == "messages" and len(encoded.sequences) > 1 for row, encoded in good),
        "pairs": sum(pairs),
        "tokens": sum(len(sequence.ids) for sequence in every),
        "trained_tokens": sum(len(sequence.kept) for sequence in every),
        "longest": max(len(sequence.ids) for sequence in every),
        "truncated": sum(encoded.truncated for _, encoded in good),
        "lost_tokens": sum(encoded.lost_tokens for _, encoded in good),
        "lost_bytes": sum(encoded.lost_bytes for _, encoded in good),
        "retokenized": sum(retokenized(row.value) for row, _ in good),
    }
    if spec.rationale is not None:
        found = [encoded.rationale for _, encoded in good if encoded.rationale is not None]
        figures |= {"rows_with_rationale": len(found), "rationale_tokens": sum(found)}
    if figures["retokenized"]:
        what = (
            f"{figures['retokenized']:,} of {counted(len(good), 'rows')} are trained as other tokens than those that "
        )
        what += "the teacher wrote: its text, read again, gives others"
        notes.insert(0, Problem(what, hint="they are marked `retokenized` in rows/rows.jsonl"))
    return Prepared(train, holdout, bad, notes, {name: float(value) for name, value in figures.items()})


def _is_chat(row: Row) -> bool:
    return "messages" in row.value or isinstance(row.value.get("prompt"), list)


def _encode(row: Row, tokenizer: Tokenizer, max_length: int, rationale: RationaleSpec | None = None) -> _Encoded:
    """Every sequence of a row. Raises _Bad."""
    notes: list[Problem] = []
    sequences: list[TokenSequence] = []
    cuts: list[tuple[int, int]] = []  # trained tokens and bytes that the limit took, by sequence
    emptied: _Bad | None = None
    thought: int | None = None
    if rationale is not None and not rationale.keep:
        row, thought = _dropped(row, rationale.tag)
    for pieces, chosen, name in _pieces(row, tokenizer, notes):
        ids, trained, offsets = tokenizer.encode(pieces)
        target, weights = trained, None
        if rationale is not None and rationale.keep and row.format != "text":
            marks = inside(pieces, rationale.tag, tokenizer, ids, offsets) & trained
            if marks.any():
                thought = (thought or 0) + int(marks[: max_length + len(ids) - _own(tokenizer, ids)].sum())
                weights = np.where(marks, np.float32(rationale.weight), np.float32(1.0))
                target = trained & (weights > 0)
                weights = None if rationale.weight == 1 else weights
        if not (target & (offsets[:, 1] > offsets[:, 0])).any():
            why = "no token of the answer's text is a target"
            if (trained & ~target).any():
                why = "all of the answer is its rationale, whose weight is 0"
            raise _Bad(f"nothing to train: {why}", name)
        limit = max_length + len(ids) - _own(tokenizer, ids)
        lost, lost_bytes = int(target[limit:].sum()), int(np.diff(offsets[limit:])[target[limit:]].sum())
        if lost:
            cuts.append((lost, lost_bytes))
            what = f"cut to {max_length} tokens: the last {lost} trained tokens ({lost_bytes} bytes) are lost"
            notes.append(Problem(what, file=row.source, line=row.line, field=name))
        if not target[:limit].any():
            emptied = _Bad(_too_long(tokenizer, pieces, max_length, limit, trained), name)
            continue
        end = int(np.flatnonzero(target[:limit])[-1]) + 1  # what follows the last target is nobody's context
        weights = None if weights is None else weights[:end]
        place = (row.source, row.line)
        sequences.append(
            TokenSequence(0, ids[:end], trained[:end], offsets[:end], *place, chosen=chosen, weights=weights)
        )
    if emptied is not None and (not sequences or row.format == "preference"):
        raise emptied
    if row.format == "preference" and np.array_equal(sequences[0].ids, sequences[1].ids):
        raise _Bad("chosen and rejected are the same tokens", "rejected", f"within max_length {max_length}")
    return _Encoded(sequences, notes, bool(cuts), sum(cut[0] for cut in cuts), sum(cut[1] for cut in cuts), thought)


def _dropped(row: Row, tag: str) -> tuple[Row, int | None]:
    """A row without the rationale of its answers, and 0 where there was one. Raises _Bad where nothing is left."""
    found, emptied = dropped(row, tag)
    if emptied is not None:
        hint = "an answer that was cut within its rationale says nothing yet: allow it more tokens"
        raise _Bad("empty without its rationale", emptied, hint)
    return found, None if found is row else 0


def _own(tokenizer: Tokenizer, ids: npt.NDArray[np.int32]) -> int:
    """Tokens but the leading <bos>."""
    return len(ids) - int(tokenizer.bos_id is not None)


def _too_long(
    tokenizer: Tokenizer, pieces: list[Piece], max_length: int, limit: int, trained: npt.NDArray[np.bool_]
) -> str:
    if trained[:limit].any():
        return f"nothing left to train: prompt and rationale, whose weight is 0, fill max_length {max_length}"
    first = next(index for index, piece in enumerate(pieces) if piece.trained)
    prompt = _own(tokenizer, tokenizer.encode(pieces[:first])[0])
    return f"nothing left to train: the prompt alone has {prompt} tokens, max_length is {max_length}"


def _pieces(row: Row, tokenizer: Tokenizer, notes: list[Problem]) -> list[tuple[list[Piece], bool, str | None]]:
    """(pieces, whether chosen, field to blame) of each sequence of a row."""
    value = row.value
    ended = value.get("finish_reason") != "length"
    if row.format == "prompt":
        hint = "prompts are for a generator (data.generator); data.path needs answers"
        raise _Bad("nothing to train: a prompt without an answer", hint=hint)
    if row.format == "text":
        _refuse_blank(tokenizer, value["text"], "text")
        return [([Piece(value["text"], True), _end(tokenizer)], True, "text")]
    if row.format == "messages":
        return [(pieces, True, None) for pieces in _conversation(row, value["messages"], None, tokenizer, ended, notes)]
    found: list[tuple[list[Piece], bool, str | None]] = []
    for key in ("completion",) if row.format == "completion" else ("chosen", "rejected"):
        answer = value[key]
        text = answer if isinstance(answer, str) else answer[0]["content"]
        _refuse_blank(tokenizer, text, key)
        if isinstance(value["prompt"], str):
            pieces = [Piece(value["prompt"], False), Piece(text, True)]
            found.append((pieces + [_end(tokenizer)] * ended, key != "rejected", key))
            continue
        message = {"role": "assistant", "content": text}
        messages = [*value["prompt"], message if isinstance(answer, str) else answer[0]]
        only = _conversation(row, messages, key, tokenizer, ended, notes)[0]
        found.append((only, key != "rejected", key))
    return found


def _conversation(
    row: Row, messages: list[dict[str, Any]], key: str | None, tokenizer: Tokenizer, ended: bool, notes: list[Problem]
) -> list[list[Piece]]:
    """Pieces of each sequence of a conversation: all its answers of weight 1, or only the last where `key` names it."""
    if key is None:
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        trained = [i for i in answers if messages[i].get("weight", 1)]
        if not trained:
            raise _Bad("nothing to train: every answer has weight 0", "messages")
        for index in trained:
            _refuse_blank(tokenizer, messages[index]["content"], f"messages[{index}].content")
    else:
        trained = [len(messages) - 1]
    assert tokenizer.template is not None
    try:
        sequences, shown = tokenizer.template.conversations(messages, trained, ended=ended)
    except TemplateError as error:
        raise _Bad(str(error), key or error.field, error.hint) from error
    if not shown:
        what = "the chat template does not write an answer as it is given; what it writes is trained"
        notes.append(Problem(what, file=row.source, line=row.line, field=key or "messages"))
    if len(sequences) > 1:
        what = f"split into {len(sequences)} sequences: the chat template rewrites earlier answers"
        notes.append(Problem(what, file=row.source, line=row.line, field="messages"))
    found = []
    for number, rendered in enumerate(sequences, 1):
        pieces = tokenizer.pieces(rendered)
        finished = ended or number < len(sequences) or trained[-1] < len(messages) - 1
        found.append(pieces if rendered.closed or not finished else [*pieces, _end(tokenizer)])
    return found


def _end(tokenizer: Tokenizer) -> Piece:
    number = tokenizer.eos_ids[0]
    return Piece(tokenizer.token_text(number), True, number)


def _refuse_blank(tokenizer: Tokenizer, answer: str, field: str) -> None:
    if tokenizer.blank(answer):
        raise _Bad("only special tokens, spelled out", field, "an answer needs text; its end token is added")
