"""What a teacher says while it writes, as messages, and put together again: a worker's side and a client's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Said, Sampling, TeacherInfo, Want
from limbeck.signals.codec import Packed, decode, encode
from limbeck.signals.fragments import FRAGMENT
from limbeck.signals.header import SignalHeader
from limbeck.signals.messages import header_for, numbers
from limbeck.signals.signal import Signal
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

_FINISHED = {"stop": pb.Completion.FINISH_REASON_STOP, "length": pb.Completion.FINISH_REASON_LENGTH}
_FIELDS = ("ids_low", "ids_high", "logprobs", "tails", "target")


def header_of_said(info: TeacherInfo, sampling: Sampling) -> SignalHeader | None:
    """The header of what is said of written tokens; None where nothing is asked."""
    if not sampling.logprobs:
        return None
    return header_for(info, Want(top_k=sampling.logprobs, temperatures=(1.0,), target=True))


def row_bytes(header: SignalHeader | None) -> int:
    """Bytes of what is said of one token."""
    return sum(header.row_bytes.values()) if header else 0


def most_bytes(sampling: Sampling, header: SignalHeader | None) -> int:
    """Bytes that a continuation takes at most: its ids, and a row for each of them and for the end."""
    return 4 * sampling.max_new_tokens + (sampling.max_new_tokens + 1) * row_bytes(header)


def completion_messages(
    prompt: Prompt, answer: Completion, sampling: Sampling, info: TeacherInfo, item_id: int
) -> Iterator[tuple[pb.Completion, int]]:
    """A continuation in messages of about 1 MiB, each with its bytes as :func:`most_bytes` counts them.

    Raises SIGNAL_INVALID for one that is not what was asked.
    """
    t, said, header = len(answer.ids), answer.said, header_of_said(info, sampling)
    if t > sampling.max_new_tokens:
        raise _wrong(f"{t:,} tokens were written, {sampling.max_new_tokens:,} are allowed", item_id)
    last = pb.Completion(
        item_id=item_id, ids=answer.ids.astype("<i4").tobytes(), finish_reason=_FINISHED[answer.finish_reason]
    )
    if header is None:
        yield last, 4 * t
        return
    if said is None:
        raise _wrong("what was said of the tokens is missing", item_id)
    n = len(said.ids)
    ended = n == t + 1 and answer.finish_reason == "stop" and int(said.ids[-1]) in info.eos_ids
    if not np.array_equal(said.ids[:t], answer.ids) or not (n == t or ended):
        raise _wrong("what was said is not of the tokens that were written", item_id)
    if ended:
        last.end_id = int(said.ids[-1])
    header = replace(header, target=said.target is not None)
    first_row = len(prompt.ids) - 1
    fields = encode(Signal(first_row, n, top_k=said.top_k, target=said.target), header).fields
    row = row_bytes(header)
    step = max(1, FRAGMENT // row)
    for start in range(0, max(n, 1), step):
        stop = min(start + step, n)
        message = pb.Completion(item_id=item_id, more=True) if stop < n else last
        part = {name: fields[name][start * size : stop * size] for name, size in header.row_bytes.items()}
        message.said.CopyFrom(signal_pb2.PackedSignal(first_row=first_row + start, n=stop - start, **part))
        yield message, (stop - start) * row + (4 * t if message is last else 0)


class CompletionReader:
    """Puts the messages of one prompt's continuation together."""

    def __init__(self, prompt: Prompt, header: SignalHeader | None) -> None:
        self._prompt, self._header = prompt, header
        self._parts: list[signal_pb2.PackedSignal] = []

    def add(self, message: pb.Completion) -> Completion | None:
        """Take the next message; the continuation where it was the last. Raises SIGNAL_INVALID for what cannot be."""
        if self._header is not None:
            due = len(self._prompt.ids) - 1 + sum(part.n for part in self._parts)
            if message.said.first_row != due:
                raise _wrong(f"row {message.said.first_row} came, row {due} was due", message.item_id)
            self._parts.append(message.said)
        if message.more:
            return None
        ids = numbers(message.ids, "<i4", "ids").astype(np.int32, copy=False)
        stopped = message.finish_reason == pb.Completion.FINISH_REASON_STOP
        end = [message.end_id] if message.HasField("end_id") else []
        said = self._said(np.append(ids, np.array(end, np.int32)), self._header) if self._header else None
        return Completion(message.item_id, ids, "stop" if stopped else "length", said)

    def _said(self, ids: np.ndarray[tuple[int], np.dtype[np.int32]], header: SignalHeader) -> Said:
        parts = self._parts
        fields = {name: b"".join(getattr(part, name) for part in parts) for name in _FIELDS}
        n = sum(part.n for part in parts)
        if n != len(ids):
            raise _wrong(f"{n} rows came for {len(ids)} tokens", self._prompt.item_id)
        header = replace(header, target=bool(fields["target"]))
        signal = decode(Packed(parts[0].first_row, n, fields), header)
        assert signal.top_k is not None, "the header has k"
        return Said(ids, signal.top_k, signal.target)


def _wrong(message: str, item_id: int) -> LimbeckError:
    return LimbeckError(Reason.SIGNAL_INVALID, problems=[Problem(message, field=f"item {item_id}")])
