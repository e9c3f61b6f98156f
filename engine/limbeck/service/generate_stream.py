"""A call of Generate: prompts are begun as there is room for their answers, which are sent as they are ready."""

from __future__ import annotations

from typing import Any

from limbeck.interfaces import Sampling
from limbeck.service.auth import Caller
from limbeck.service.quotas import Use
from limbeck.service.requests import checked_prompt, checked_sampling
from limbeck.service.streams import Desk, Item, Stream
from limbeck.signals.messages import header_message
from limbeck.signals.said import header_of_said
from limbeck.v1 import teacher_service_pb2 as pb


class GenerateStream(Stream):
    """A call of Generate. Answers take no credit; a prompt counts what its answer can take at most."""

    method, request, response = "Generate", pb.GenerateRequest, pb.GenerateResponse

    def __init__(self, context: Any, caller: Caller, use: Use, desk: Desk) -> None:
        super().__init__(context, caller, use, desk)
        self._waiting: dict[Item, None] = {}
        self._sampling: Sampling
        self._sampling_message: pb.Sampling

    def _accept(self, start: pb.GenerateStart) -> bytes:
        self._sampling_message, self._sampling = start.sampling, checked_sampling(start.sampling, self._info)
        header = header_of_said(self._info, self._sampling)
        started = pb.GenerateStarted(
            teacher=self._desk.describe(self._host), header=header_message(header) if header else None
        )
        return pb.GenerateResponse(started=started).SerializeToString()

    async def _take(self, kind: str, content: Any) -> None:
        self._waiting.update(dict.fromkeys(await self._keep(content.prompts)))

    def _checked(self, message: pb.Prompt) -> Item:
        tokens, cost = checked_prompt(message, self._sampling, self._info, self._desk.limits)
        return Item(message, tokens, message.ByteSize(), cost)

    def _admit(self) -> None:
        begun: list[Item] = []
        while self._waiting and not (self._draining and not self._half_closed):
            item = next(iter(self._waiting))
            if not self._share.room(item.left):
                break
            del self._waiting[item]
            self._share.hold(item.left)
            item.begun = True
            begun.append(item)
        if begun:
            messages = [item.message for item in begun]
            self._host.generate(self._caller.name, self._sampling_message, messages, self)

    def _release(self, item: Item) -> None:
        super()._release(item)
        self._waiting.pop(item, None)
