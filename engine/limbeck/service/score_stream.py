"""A call of Score: items are begun and answers are sent as the client's credit allows."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from limbeck.interfaces import Want
from limbeck.service.auth import Caller
from limbeck.service.quotas import Use
from limbeck.service.requests import checked_item, checked_want
from limbeck.service.streams import Desk, Group, Item, Stream
from limbeck.signals.fragments import FRAGMENT
from limbeck.signals.messages import header_for, header_message
from limbeck.v1 import signal_pb2
from limbeck.v1 import teacher_service_pb2 as pb


class ScoreStream(Stream):
    """A call of Score."""

    method, request, response = "Score", pb.ScoreRequest, pb.ScoreResponse

    def __init__(self, context: Any, caller: Caller, use: Use, desk: Desk) -> None:
        super().__init__(context, caller, use, desk)
        self._waiting: OrderedDict[Group, None] = OrderedDict()
        self._credit = 0  # granted and not sent
        self._reserved = 0  # of begun items, not sent
        self._want_message: pb.Want
        self._want: Want

    def _accept(self, start: pb.ScoreStart) -> bytes:
        self._want_message, self._want = start.want, checked_want(start.want, self._info)
        self._bfloat16 = start.want.hidden_dtype == signal_pb2.DTYPE_BFLOAT16
        self._credit = start.credit
        header = header_for(self._info, self._want)
        started = pb.ScoreStarted(
            teacher=self._desk.describe(self._host), header=header_message(header) if header else None
        )
        return pb.ScoreResponse(started=started).SerializeToString()

    async def _take(self, kind: str, content: Any) -> None:
        if kind == "grant":
            self._credit += content.bytes
            return
        kept = await self._keep(content.items)
        for group in [Group(kept, True)] if content.alone else [Group([item], False) for item in kept]:
            if group.items:
                self._waiting[group] = None
            for item in group.items:
                item.group = group

    def _checked(self, message: pb.ScoreItem) -> Item:
        tokens, cost = checked_item(message, self._want, self._info, self._desk.limits, bfloat16=self._bfloat16)
        return Item(message, tokens, message.ByteSize(), cost)

    def _admit(self) -> None:
        mixed: list[pb.ScoreItem] = []
        while self._waiting and not (self._draining and not self._half_closed):
            group = next(iter(self._waiting))
            cost = sum(item.left for item in group.items)
            enough = self._half_closed or self._credit - self._reserved >= min(cost, FRAGMENT)
            if not (enough and self._share.room(cost)):
                break
            del self._waiting[group]
            self._reserved += cost
            self._share.hold(cost)
            for item in group.items:
                item.begun = True
            messages = [item.message for item in group.items]
            if group.alone:
                self._host.score(self._caller.name, self._want_message, messages, self, alone=True)
            else:
                mixed += messages
        if mixed:
            self._host.score(self._caller.name, self._want_message, mixed, self, alone=False)

    def _may_send(self, cost: int) -> bool:
        return self._half_closed or self._credit > 0 or cost == 0

    def _sent(self, cost: int) -> None:
        self._credit -= cost
        self._reserved -= cost

    def _release(self, item: Item) -> None:
        super()._release(item)
        if item.begun:
            self._reserved -= item.left
        elif item.group is not None:
            item.group.items.remove(item)
            if not item.group.items:
                del self._waiting[item.group]
