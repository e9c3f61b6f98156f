"""A teacher's output head, fetched whole and checked."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np

from limbeck.client.errors import unavailable
from limbeck.client.link import Link, Retries
from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.signals.fragments import bfloat16_numbers
from limbeck.signals.head import OutputHead
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb


async def fetch_head(link: Link, teacher: str) -> OutputHead:
    """The head of a teacher, float32; asked again after a lost connection. Raises SIGNAL_INVALID where it is wrong."""
    retries = Retries(link)
    while True:
        try:
            return await _fetch(link, teacher)
        except LimbeckError as error:
            await asyncio.sleep(retries.delay(error))


async def _fetch(link: Link, teacher: str) -> OutputHead:
    call = link.call("GetOutputHead", pb.GetOutputHeadRequest(teacher=teacher))
    head: pb.OutputHead | None = None
    content = bytearray()
    there = 0
    try:
        while (response := await link.read(call)) is not None:
            if response.WhichOneof("kind") == "head":
                head = response.head
                content = bytearray(_size(head, teacher))
            else:
                chunk = response.chunk
                if head is None or chunk.offset != there or there + len(chunk.data) > len(content):
                    raise _wrong(f"bytes at {chunk.offset} came where those at {there} were due", teacher)
                content[there : there + len(chunk.data)] = chunk.data
                there += len(chunk.data)
    finally:
        call.cancel()
    if head is None or there < len(content):
        raise unavailable(link.name, f"the call ended after {there:,} of {len(content):,} bytes")
    digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
    if digest != head.sha256:
        raise _wrong(f"its bytes have the checksum {digest}, {head.sha256} is stated", teacher)
    return _head(head, content)


def _size(head: pb.OutputHead, teacher: str) -> int:
    """Bytes of the head, which must be what its shape says: nothing larger is ever held."""
    width = 2 if head.dtype == signal_pb2.DTYPE_BFLOAT16 else 4
    expected = width * head.vocab_size * (head.hidden_size + head.bias)
    if head.bytes != expected or not expected:
        shape = f"[{head.vocab_size}, {head.hidden_size}]"
        raise _wrong(f"{head.bytes:,} bytes are announced, {shape} takes {expected:,}", teacher)
    return expected


def _head(head: pb.OutputHead, content: bytearray) -> OutputHead:
    bf16 = head.dtype == signal_pb2.DTYPE_BFLOAT16
    values = bfloat16_numbers(content) if bf16 else np.frombuffer(content, "<f4")
    weight = values[: head.vocab_size * head.hidden_size].reshape(head.vocab_size, head.hidden_size)
    return OutputHead(
        weight=weight,
        bias=values[weight.size :] if head.bias else None,
        scale=head.scale,
        soft_cap=head.softcap or None,
    )


def _wrong(message: str, teacher: str) -> LimbeckError:
    problem = Problem(message, field=f"output head of {teacher}")
    return LimbeckError(Reason.SIGNAL_INVALID, problems=[problem])
