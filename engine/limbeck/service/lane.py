"""Scores, or texts, of one teacher: items that wait, and the batches of them at the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.internal.v1 import worker_pb2 as internal
from limbeck.service.mixer import Entry, Mixer
from limbeck.signals.messages import error_of
from limbeck.v1 import teacher_service_pb2 as pb

CALLS = 2  # at the worker: one computes and one waits, so that it is never idle
MOST_DEATHS = 3  # of workers while they computed an item, before it is refused
MOST_REMEMBERED = 4096  # items that workers died of


class Sink(Protocol):
    """Where the answers to items go. Called on the event loop; must not block."""

    def answer(self, item_id: int, response: bytes, cost: int, last: bool) -> None:
        """A piece of an item's answer: an encoded ScoreResponse or GenerateResponse."""

    def failed(self, item_id: int, error: LimbeckError) -> None:
        """The item will not be answered, and what came of it is void."""


@dataclass(eq=False, slots=True, kw_only=True)
class Item(Entry):
    """An item that is not answered. `gone`: nobody waits for it any more. `begun`: some of its answer has come."""

    ask: pb.Want | pb.Sampling
    message: Any  # ScoreItem or Prompt
    sink: Sink
    alone: bool
    gone: bool = False
    begun: bool = False
    place: int = 0
    call: int | None = None  # at the worker
    refused: bool = False  # and about to be told so

    @property
    def digest(self) -> bytes:
        """Of what is asked, whoever asks: the same when it is sent again."""
        unnamed = type(self.message)()
        unnamed.CopyFrom(self.message)
        unnamed.ClearField("item_id")
        return sha256(self.key + unnamed.SerializeToString(deterministic=True)).digest()


class Lane:
    """The way of items from clients to the worker and of answers back.

    An error of a shared batch may be one item's fault: what is left of it is asked again, each item on its own. So is
    what a worker died with, when it is sent again; what MOST_DEATHS workers died with is refused.
    """

    def __init__(self, refused: Reason, batch_tokens: int, numbers: Iterator[int]) -> None:
        self._refused, self._numbers = refused, numbers
        self._mixer: Mixer[Item] = Mixer(batch_tokens)
        self._items: dict[Sink, dict[int, Item]] = {}
        self._calls: dict[int, list[Item]] = {}
        self._deaths: dict[bytes, int] = {}
        self.batches = self.tokens = 0  # given to the worker so far

    @property
    def waiting(self) -> int:
        """Items that are not yet at the worker."""
        return len(self._mixer)

    def add(
        self,
        client: str,
        ask: pb.Want | pb.Sampling,
        messages: Sequence[pb.ScoreItem] | Sequence[pb.Prompt],
        sink: Sink,
        *,
        alone: bool = False,
    ) -> None:
        """Queue checked items."""
        key = ask.SerializeToString(deterministic=True)
        if isinstance(ask, pb.Sampling):
            more, named = ask.max_new_tokens, ask.temperature > 0
        else:
            more, named = 0, ask.samples > 0
        items = [
            Item(
                client=client,
                key=key,
                item_id=message.item_id,
                tokens=len(message.ids) // 4 + more,
                size=message.ByteSize(),
                named=named,
                ask=ask,
                message=message,
                sink=sink,
                alone=alone,
            )
            for message in messages
        ]
        self._items.setdefault(sink, {}).update({item.item_id: item for item in items})
        deaths = {item: self._deaths.get(item.digest, 0) for item in items} if self._deaths else {}
        for item in items:
            if deaths.get(item, 0) >= MOST_DEATHS:
                item.refused = True
                asyncio.get_running_loop().call_soon(self._refuse, item)  # not while the caller is still queueing it
        good = [item for item in items if not item.refused]
        if alone:
            self._mixer.add(good, alone=True)
        else:
            self._mixer.add([item for item in good if not deaths.get(item)])
            for item in good:
                if deaths.get(item):
                    self._mixer.add([item], alone=True)

    def cancel(self, sink: Sink, item_ids: Sequence[int] | None) -> list[internal.ToWorker]:
        """Drop items, all of `sink` for None. Returns what the worker must be told."""
        known = self._items.get(sink, {})
        named = list(known) if item_ids is None else item_ids
        dropped: dict[int, list[int]] = {}
        for item in [known[item_id] for item_id in named if item_id in known]:
            self._forget(item)
            if item.call is not None:
                dropped.setdefault(item.call, []).append(item.place)
            elif not item.refused:
                self._mixer.drop(item)
        return [_cancel(call, places) for call, places in dropped.items()]

    def next_call(self) -> list[internal.ToWorker]:
        """The next batch for the worker as frames; empty where nothing waits, or enough is there."""
        while len(self._calls) < CALLS and (batch := self._mixer.next()):
            if all(item.gone for item in batch):
                continue
            number = next(self._numbers)
            self._calls[number] = batch
            for place, item in enumerate(batch):
                item.call, item.place = number, place
            self.batches += 1
            self.tokens += sum(item.tokens for item in batch)
            frames = [_frame(number, batch)]
            # the others' numbers depend on what is beside them, so what is gone is asked all the same
            if gone := [item.place for item in batch if item.gone]:
                frames.append(_cancel(number, gone))
            return frames
        return []

    def answer(self, answer: internal.Answer) -> None:
        """Pass a piece of an answer on."""
        item = self._calls[answer.call][answer.place]
        if item.gone:
            return
        item.begun = True
        if answer.last:
            self._forget(item)
            if self._deaths:
                self._deaths.pop(item.digest, None)
        item.sink.answer(item.item_id, answer.response, answer.cost, answer.last)

    def done(self, done: internal.CallDone) -> None:
        """A call has ended: what is left of it fails, or is asked again."""
        batch = self._calls.pop(done.call)
        error = error_of(done.error) if done.HasField("error") else LimbeckError(Reason.INTERNAL)
        for item in [item for item in batch if not item.gone]:
            if len(batch) == 1 or item.alone or item.begun:
                self._fail(item, error)
            else:
                item.call = None
                self._mixer.add([item], alone=True)

    def lose(self, error: LimbeckError) -> None:
        """The worker is gone: what it had fails with `error`. Remembers what it was computing."""
        for place, batch in enumerate(self._calls.values()):
            left = [item for item in batch if not item.gone]
            # a death counts once, however many ask the same: a prompt is often continued many times
            for digest in dict.fromkeys(item.digest for item in left) if place == 0 else ():
                self._deaths[digest] = self._deaths.pop(digest, 0) + 1
            for item in left:
                self._fail(item, error)
        self._calls.clear()
        for digest in list(self._deaths)[:-MOST_REMEMBERED]:
            del self._deaths[digest]

    def fail_waiting(self, error: LimbeckError) -> None:
        """What waits fails with `error`."""
        for item in self._mixer.clear():
            if not item.gone:
                self._fail(item, error)

    def knows(self, call: int) -> bool:
        """Whether a call is this lane's."""
        return call in self._calls

    def _refuse(self, item: Item) -> None:
        if not item.gone:
            text = f"the teacher's worker has died {MOST_DEATHS} times while it computed this item"
            hint = "it may need more memory than there is: shorten it, or lower the teacher's batch_tokens"
            problem = Problem(text, field=f"item {item.item_id}", hint=hint)
            self._fail(item, LimbeckError(self._refused, problems=[problem]))

    def _fail(self, item: Item, error: LimbeckError) -> None:
        self._forget(item)
        item.sink.failed(item.item_id, error)

    def _forget(self, item: Item) -> None:
        item.gone = True
        known = self._items[item.sink]
        if known.get(item.item_id) is item:
            del known[item.item_id]
        if not known:
            del self._items[item.sink]


def _frame(number: int, batch: Sequence[Item]) -> internal.ToWorker:
    ask, messages = batch[0].ask, [item.message for item in batch]
    if isinstance(ask, pb.Want):
        return internal.ToWorker(score=internal.ScoreCall(call=number, want=ask, items=messages))
    return internal.ToWorker(generate=internal.GenerateCall(call=number, sampling=ask, prompts=messages))


def _cancel(call: int, places: Sequence[int]) -> internal.ToWorker:
    return internal.ToWorker(cancel=internal.CancelItems(call=call, places=places))
