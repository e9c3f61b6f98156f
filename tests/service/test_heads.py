"""The output head in messages."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.interfaces import HeadTeacher
from limbeck.service import heads
from limbeck.service.heads import HeadDesk
from limbeck.signals.head import OutputHead
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb
from limbeck_echo.config import EchoConfig
from limbeck_echo.teacher import EchoTeacher


class WithHead(EchoTeacher):
    def __init__(self, head: OutputHead) -> None:
        super().__init__(EchoConfig(tokenizer=""))
        self.head, self.asked = head, 0

    async def output_head(self) -> OutputHead:
        self.asked += 1
        return self.head


def some(v: int, d: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(v, d)).astype(dtype)


async def taken(desk: HeadDesk) -> tuple[pb.OutputHead, bytes, list[int]]:
    """The head as a host takes it: its message, its bytes, and how many messages each call gave."""
    found, data, counts, last = None, b"", [], False
    while not last:
        counts.append(0)
        async for response, size, is_last in desk.answers(len(data)):
            counts[-1], last = counts[-1] + 1, is_last
            if response.HasField("head"):
                assert (found, size) == (None, 0)
                found = response.head
            else:
                assert response.chunk.offset == len(data)
                assert size == len(response.chunk.data)
                data += response.chunk.data
    assert found is not None
    return found, data, counts


@pytest.mark.parametrize("bias", [None, np.arange(70, dtype=np.float32)])
def test_the_bytes_come_some_at_a_time_with_their_size_and_digest(bias, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK", 1000)
    weight = some(70, 50)
    teacher = WithHead(OutputHead(weight, bias, scale=0.5, soft_cap=30.0))
    desk = HeadDesk(teacher)
    head, data, counts = asyncio.run(taken(desk))
    assert data == weight.tobytes() + (b"" if bias is None else bias.tobytes())
    assert (head.bytes, head.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (head.vocab_size, head.hidden_size, head.bias) == (70, 50, bias is not None)
    assert (head.scale, head.softcap, head.dtype) == (0.5, 30.0, signal_pb2.DTYPE_FLOAT32)
    assert counts[0] == 1 + heads.CHUNKS
    assert len(counts) == 4
    asyncio.run(taken(desk))
    assert teacher.asked == 1


@pytest.mark.parametrize("weight", [some(4, 3, np.float64), np.asfortranarray(some(4, 3)), some(4, 6)[:, ::2]])
def test_whatever_lies_in_memory_f32_rows_are_sent(weight: np.ndarray) -> None:
    head, data, _ = asyncio.run(taken(HeadDesk(WithHead(OutputHead(weight)))))
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(4, 3), weight.astype(np.float32))
    assert (head.scale, head.softcap) == (1.0, 0.0)


def test_a_teacher_without_a_head_is_refused() -> None:
    teacher = EchoTeacher(EchoConfig(tokenizer=""))
    assert not isinstance(teacher, HeadTeacher)
    teacher.info = lambda: type("Info", (), {"name": "echo"})()  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(LimbeckError) as caught:
        asyncio.run(taken(HeadDesk(teacher)))
    assert caught.value.reason is Reason.CAPABILITY_MISSING
