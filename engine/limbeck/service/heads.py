"""A teacher's output head as messages, some at a time."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import HeadTeacher, Teacher
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb

CHUNK = 1 << 20
CHUNKS = 4  # of one call


@dataclass(frozen=True, slots=True)
class _Head:
    message: pb.OutputHead
    parts: tuple[memoryview, ...]  # W and b as bytes

    def bytes(self, start: int, stop: int) -> bytes:
        """Bytes `start` … `stop − 1` of the parts in a row."""
        found, begin = [], 0
        for part in self.parts:
            found.append(part[max(0, start - begin) : max(0, stop - begin)])
            begin += len(part)
        return b"".join(found)


class HeadDesk:
    """Gives a teacher's output head away; asks the teacher for it once."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._head: _Head | None = None

    async def answers(self, offset: int) -> AsyncIterator[tuple[pb.GetOutputHeadResponse, int, bool]]:
        """Messages from byte `offset` on, a few MiB: response, bytes of the head in it, and whether it is the last.

        Raises CAPABILITY_MISSING where the teacher gives none, MODEL_INVALID.
        """
        if self._head is None:
            self._head = await self._make()
        head = self._head
        if offset == 0:
            yield pb.GetOutputHeadResponse(head=head.message), 0, False
        for start in range(offset, min(head.message.bytes, offset + CHUNKS * CHUNK), CHUNK):
            data = head.bytes(start, start + CHUNK)
            last = start + len(data) == head.message.bytes
            yield pb.GetOutputHeadResponse(chunk=pb.Chunk(offset=start, data=data)), len(data), last

    async def _make(self) -> _Head:
        if not isinstance(self._teacher, HeadTeacher):
            text = f"teacher {self._teacher.info().name} does not give its output head"
            problem = Problem(text, hint="use another teacher, or a loss over top_k or full")
            raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
        found = await self._teacher.output_head()
        arrays = [found.weight] if found.bias is None else [found.weight, found.bias]
        parts = tuple(np.ascontiguousarray(array, "<f4").data.cast("B") for array in arrays)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        message = pb.OutputHead(
            vocab_size=found.weight.shape[0],
            hidden_size=found.weight.shape[1],
            dtype=signal_pb2.DTYPE_FLOAT32,
            bias=found.bias is not None,
            scale=found.scale,
            softcap=found.soft_cap or 0.0,
            bytes=sum(map(len, parts)),
            sha256=digest.hexdigest(),
        )
        return _Head(message, parts)
