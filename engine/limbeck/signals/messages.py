"""What is asked and what a teacher is as messages of limbeck.v1, for both ends of the wire."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import LimbeckError, Problem, Reason, sayable
from limbeck.interfaces import Sampling, ScoreItem, TeacherInfo, Want
from limbeck.signals.header import SignalHeader
from limbeck.v1 import error_pb2, signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

MOST_PROBLEMS = 20
MOST_TEXT = 300  # characters of one text of a problem: an error must fit the trailers of a call


def want_message(want: Want, *, bfloat16: bool = False) -> pb.Want:
    """`want` as a message. `bfloat16`: hidden states are to be sent so, half as large."""
    return pb.Want(
        top_k=want.top_k,
        temperatures=want.temperatures,
        target=want.target,
        token_ids=want.token_ids,
        samples=want.samples,
        layers=want.layers,
        hidden_dtype=signal_pb2.DTYPE_BFLOAT16 if bfloat16 else signal_pb2.DTYPE_FLOAT32,
        full=want.full,
    )


def want_of(message: pb.Want) -> Want:
    """The inverse of :func:`want_message`."""
    return Want(
        top_k=message.top_k,
        temperatures=tuple(message.temperatures) or (1.0,),
        target=message.target,
        token_ids=message.token_ids,
        samples=message.samples,
        layers=tuple(message.layers),
        full=message.full,
    )


def item_message(item: ScoreItem) -> pb.ScoreItem:
    """An item as a message. Raises ValueError for what cannot be sent as it is."""
    dense = item.offsets is None
    return pb.ScoreItem(
        item_id=item.item_id,
        ids=number_bytes(item.ids, "<i4", "ids", 1),
        first_row=item.first_row,
        n=item.n,
        token_ids=b""
        if item.token_ids is None
        else number_bytes(item.token_ids, "<i4", "token_ids", 2 if dense else 1),
        offsets=b"" if item.offsets is None else number_bytes(item.offsets, "<i8", "offsets", 1),
        seed=item.seed,
    )


def item_of(message: pb.ScoreItem, want: Want) -> ScoreItem:
    """The inverse of :func:`item_message`. Raises REQUEST_INVALID for bytes that cannot be."""
    field = f"item {message.item_id}"
    ids = numbers(message.ids, "<i4", f"{field}: ids")
    token_ids = offsets = None
    if want.token_ids:
        token_ids = numbers(message.token_ids, "<i4", f"{field}: token_ids")
        if message.offsets:
            offsets = numbers(message.offsets, "<i8", f"{field}: offsets")
        elif message.n and len(token_ids) % message.n == 0:
            token_ids = token_ids.reshape(message.n, -1)
        else:
            raise _invalid(f"{len(token_ids)} ids are not {message.n} rows of equal length", f"{field}: token_ids")
    return ScoreItem(message.item_id, ids, message.first_row, message.n, token_ids, offsets, message.seed)


def sampling_message(sampling: Sampling) -> pb.Sampling:
    """How a text is drawn, as a message."""
    return pb.Sampling(
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
    )


def sampling_of(message: pb.Sampling) -> Sampling:
    """The inverse of :func:`sampling_message`."""
    top_p = message.top_p if message.HasField("top_p") else 1.0
    return Sampling(
        message.max_new_tokens, message.temperature, top_p, message.top_k, message.seed, logprobs=message.logprobs
    )


def header_message(header: SignalHeader) -> signal_pb2.SignalHeader:
    """A header as a message."""
    return signal_pb2.SignalHeader(
        codec=header.codec,
        version=header.version,
        vocab_size=header.vocab_size,
        k=header.k,
        temperatures=header.temperatures,
        target=header.target,
        tokenizer_digest=header.tokenizer_digest,
        template_digest=header.template_digest,
        weights_digest=header.weights_digest,
        teacher=header.teacher,
        tail_exact=header.tail_exact,
    )


def header_of(message: signal_pb2.SignalHeader) -> SignalHeader:
    """The inverse of :func:`header_message`. Raises SIGNAL_INVALID, also for a codec that is not known."""
    return SignalHeader(
        codec=message.codec,
        version=message.version,
        vocab_size=message.vocab_size,
        k=message.k,
        temperatures=tuple(message.temperatures),
        target=message.target,
        tokenizer_digest=message.tokenizer_digest,
        template_digest=message.template_digest if message.HasField("template_digest") else None,
        weights_digest=message.weights_digest,
        teacher=message.teacher,
        tail_exact=message.tail_exact,
    )


def header_for(info: TeacherInfo, want: Want) -> SignalHeader | None:
    """The header of a teacher's packed answers to `want`; None where nothing of them is packed."""
    if not want.top_k and not want.target:
        return None
    return SignalHeader(
        vocab_size=info.vocab_size,
        k=want.top_k,
        temperatures=tuple(want.temperatures) if want.top_k else (),
        target=want.target,
        tokenizer_digest=info.tokenizer_digest,
        template_digest=info.template_digest,
        weights_digest=info.weights_digest,
        teacher=info.name,
        tail_exact=info.tail_exact,
    )


def teacher_message(info: TeacherInfo) -> pb.Teacher:
    """What a teacher is, as a message without name, state and limits: those are the server's."""
    return pb.Teacher(
        plugin=info.name,
        vocab_size=info.vocab_size,
        tokenizer_digest=info.tokenizer_digest,
        template_digest=info.template_digest,
        weights_digest=info.weights_digest,
        max_length=info.max_length,
        capabilities=sorted(info.capabilities),
        eos_ids=info.eos_ids,
        bos_id=info.bos_id,
        temperatures=info.temperatures or (),
        max_top_k=info.max_top_k,
        tail_exact=info.tail_exact,
        hidden_size=info.hidden_size,
        num_layers=info.num_layers,
        parameters=info.parameters,
    )


def info_of(message: pb.Teacher) -> TeacherInfo:
    """The inverse of :func:`teacher_message`."""

    def optional(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    return TeacherInfo(
        name=message.plugin,
        vocab_size=message.vocab_size,
        tokenizer_digest=message.tokenizer_digest,
        template_digest=optional("template_digest"),
        weights_digest=message.weights_digest,
        max_length=message.max_length,
        capabilities=frozenset(message.capabilities),
        eos_ids=tuple(message.eos_ids),
        bos_id=optional("bos_id"),
        temperatures=tuple(message.temperatures) or None,
        max_top_k=optional("max_top_k"),
        tail_exact=message.tail_exact,
        hidden_size=optional("hidden_size"),
        num_layers=optional("num_layers"),
        parameters=optional("parameters"),
    )


def error_message(error: LimbeckError) -> error_pb2.Error:
    """An error as it travels: cut where long. Its files are told as they are: who tells a client makes them public."""
    problems = [problem_message(one, MOST_TEXT) for one in error.problems[:MOST_PROBLEMS]]
    return error_pb2.Error(reason=str(error.reason), message=sayable(error.message)[:MOST_TEXT], problems=problems)


def problem_message(problem: Problem, most: int | None = None) -> error_pb2.Problem:
    """A problem as it travels, each of its texts cut at `most` characters; of a longer file the name is left."""
    file = problem.file or ""
    if most is not None and len(file) > most:
        file = f"…/{PurePath(file).name}"
    return error_pb2.Problem(
        message=sayable(problem.message)[:most],
        field=sayable(problem.field or "")[:most],
        hint=sayable(problem.hint or "")[:most],
        file=sayable(file)[:most],
        line=problem.line or 0,
        column=problem.column or 0,
    )


def error_of(message: error_pb2.Error) -> LimbeckError:
    """The inverse of :func:`error_message`; a reason that is not known here becomes INTERNAL, told in its message."""
    problems = [problem_of(one) for one in message.problems]
    try:
        return LimbeckError(Reason(message.reason), message.message or None, problems)
    except ValueError:
        return LimbeckError(Reason.INTERNAL, f"{message.reason}: {message.message}", problems)


def problem_of(message: error_pb2.Problem) -> Problem:
    """The inverse of :func:`problem_message`."""
    return Problem(
        message.message,
        file=message.file or None,
        line=message.line or None,
        column=message.column or None,
        field=message.field or None,
        hint=message.hint or None,
    )


def numbers(raw: Any, dtype: str, field: str) -> npt.NDArray[Any]:
    """A view of little-endian numbers. Raises REQUEST_INVALID where the bytes are no whole number of them."""
    size = np.dtype(dtype).itemsize
    if len(raw) % size:
        raise _invalid(f"{len(raw)} bytes are no whole number of {size}-byte numbers", field)
    return np.frombuffer(raw, dtype)


def number_bytes(values: Any, dtype: str, name: str, axes: int) -> bytes:
    """An array of integers as little-endian bytes. Raises ValueError where that would change one in silence."""
    if not isinstance(values, np.ndarray) or values.ndim != axes or values.dtype.kind not in "iu":
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name} are {found}, a numpy array of integers with {axes} axes is needed")
    if values.dtype != dtype and values.size:
        limits, low, high = np.iinfo(dtype), int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name} hold {low if low < limits.min else high}, which no {limits.dtype} can be")
    return values.astype(dtype, copy=False).tobytes()


def _invalid(message: str, field: str) -> LimbeckError:
    return LimbeckError(Reason.REQUEST_INVALID, problems=[Problem(message, field=field)])
