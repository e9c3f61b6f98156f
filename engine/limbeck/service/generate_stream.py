"""A call of Generate: prompts are queued as they come, and their continuations sent as they are ready."""

from __future__ import annotations

from typing import Any

from limbeck.service.requests import checked_prompt, checked_sampling
from limbeck.service.streams import Item, Stream
from limbeck.v1 import teacher_service_pb2 as pb


class GenerateStream(Stream):
    """A call of Generate. Answers take no credit."""

    method, request, response = "Generate", pb.GenerateRequest, pb.GenerateResponse

    def answer(self, item_id: int, response: bytes, cost: int, last: bool) -> None:
        super().answer(item_id, response, 0, last)

    def _accept(self, start: pb.GenerateStart) -> bytes:
        self._sampling_message, self._sampling = start.sampling, checked_sampling(start.sampling, self._info)
        started = pb.GenerateStarted(teacher=self._desk.describe(self._host))
        return pb.GenerateResponse(started=started).SerializeToString()

    async def _take(self, kind: str, content: Any) -> None:
        kept = await self._keep(content.prompts)
        for item in kept:
            item.begun = True
        if kept:
            messages = [item.message for item in kept]
            self._host.generate(self._caller.name, self._sampling_message, messages, self)

    def _checked(self, message: pb.Prompt) -> Item:
        return Item(message, checked_prompt(message, self._sampling, self._info), message.ByteSize())
