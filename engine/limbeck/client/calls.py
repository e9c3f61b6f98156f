"""What Score and Generate ask and how their answers are read; :mod:`limbeck.client.exchange` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from limbeck.errors import LimbeckError, Problem, Reason
from limbeck.interfaces import Completion, Prompt, Sampling, ScoreItem, Want
from limbeck.signals import Signal
from limbeck.signals.fragments import Assembler, row_costs
from limbeck.signals.header import SignalHeader
from limbeck.signals.messages import (
    header_of,
    info_of,
    item_message,
    number_bytes,
    sampling_message,
    want_message,
)
from limbeck.signals.said import CompletionReader, header_of_said, most_bytes
from limbeck.v1 import teacher_service_pb2 as pb

MESSAGE = 1 << 20  # bytes of items that a message aims at
LARGEST_MESSAGE = 4 * MESSAGE - (1 << 16)  # gRPC's default limit, less what is around the items
MOST_ITEMS = 256  # of a message
LEAST_CREDIT = 1 << 20  # with less the server begins nothing


class Named(Protocol):
    """What is asked: something with the caller's name for it."""

    @property
    def item_id(self) -> int: ...


Item_contra = TypeVar("Item_contra", bound=Named, contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the caller is made for: a teacher that is another is refused before the first item."""

    tokenizer_digest: str | None = None
    weights_digest: str | None = None
    vocab_size: int | None = None

    def message(self) -> pb.Expectation:
        """As it is sent."""
        return pb.Expectation(
            tokenizer_digest=self.tokenizer_digest, weights_digest=self.weights_digest, vocab_size=self.vocab_size
        )


class Call(Protocol[Item_contra, Answer_co]):
    """What differs between the two calls. `pinned` is the teacher that answered first: no other may go on."""

    method: str
    teacher: str
    request: type[Any]
    answer: str  # the field of a response that carries answers
    alone: bool
    credit: int  # 0: there is none
    expectation: pb.Expectation

    def start(self, credit: int) -> Any: ...

    def started(self, message: Any) -> pb.Teacher: ...

    def encode(self, item: Item_contra) -> Any: ...

    def items(self, messages: Sequence[Any]) -> Any: ...

    def tokens(self, item: Item_contra) -> int: ...

    def could_fit(self, item: Item_contra, limits: pb.Limits) -> bool: ...

    def reader(self, item: Item_contra) -> Callable[[Any], Answer_co | None]: ...


class Scoring:
    """Score."""

    method, request, answer = "Score", pb.ScoreRequest, "fragment"

    def __init__(
        self,
        teacher: str,
        want: Want,
        expectation: Expectation,
        *,
        bfloat16: bool = False,
        alone: bool = False,
        credit: int = 64 << 20,
    ) -> None:
        if not LEAST_CREDIT <= credit < 1 << 64:
            allowed = f"{LEAST_CREDIT:,} up to {(1 << 64) - 1:,} are allowed"
            problem = Problem(f"credit is {credit:,} bytes, {allowed}", field="credit")
            raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem])
        self.alone, self.credit, self.expectation = alone, credit, expectation.message()
        self.teacher, self._want, self._bfloat16 = teacher, want, bfloat16
        self._header: SignalHeader | None = None
        self._seen = pb.Teacher()

    def start(self, credit: int) -> pb.ScoreRequest:
        try:
            want = want_message(self._want, bfloat16=self._bfloat16)
        except (ValueError, TypeError) as error:
            problem = Problem(f"{self._want} cannot be sent: {error}", field="want")
            raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem]) from None
        start = pb.ScoreStart(teacher=self.teacher, want=want, expectation=self.expectation, credit=credit)
        return pb.ScoreRequest(start=start)

    def started(self, message: pb.ScoreStarted) -> pb.Teacher:
        self._header = header_of(message.header) if message.HasField("header") else None
        self._seen = message.teacher
        return message.teacher

    def encode(self, item: ScoreItem) -> pb.ScoreItem:
        if self._want.token_ids and item.token_ids is None:
            raise ValueError("token_ids are wanted and it says none")
        return item_message(item)

    def items(self, messages: Sequence[pb.ScoreItem]) -> pb.ScoreRequest:
        return pb.ScoreRequest(items=pb.ScoreItems(items=messages, alone=self.alone))

    def tokens(self, item: ScoreItem) -> int:
        return len(item.ids)

    def could_fit(self, item: ScoreItem, limits: pb.Limits) -> bool:
        """Whether the item is within the limits where nothing else is under way."""
        bytes_ = int(row_costs(item, self._want, info_of(self._seen), bfloat16=self._bfloat16).sum())
        return len(item.ids) <= (limits.tokens_in_flight or len(item.ids)) and bytes_ <= (limits.answer_bytes or bytes_)

    def reader(self, item: ScoreItem) -> Callable[[pb.Fragment], tuple[int, Signal] | None]:
        parts = Assembler(item, self._want, self._header)

        def read(fragment: pb.Fragment) -> tuple[int, Signal] | None:
            signal = parts.add(fragment)
            return None if signal is None else (item.item_id, signal)

        return read


class Generating:
    """Generate."""

    method, request, answer = "Generate", pb.GenerateRequest, "completion"
    alone, credit = False, 0

    def __init__(self, teacher: str, sampling: Sampling, expectation: Expectation) -> None:
        self.expectation = expectation.message()
        self.teacher, self._sampling = teacher, sampling
        self._header: SignalHeader | None = None
        self._seen = pb.Teacher()

    def start(self, credit: int) -> pb.GenerateRequest:
        try:
            sampling = sampling_message(self._sampling)
        except (ValueError, TypeError) as error:
            problem = Problem(f"{self._sampling} cannot be sent: {error}", field="sampling")
            raise LimbeckError(Reason.REQUEST_INVALID, problems=[problem]) from None
        start = pb.GenerateStart(teacher=self.teacher, sampling=sampling, expectation=self.expectation)
        return pb.GenerateRequest(start=start)

    def started(self, message: pb.GenerateStarted) -> pb.Teacher:
        if self._sampling.logprobs and not message.HasField("header"):  # it would be left out in silence
            problem = Problem("the server is of a version that tells no log-probabilities of texts", field="logprobs")
            raise LimbeckError(Reason.CAPABILITY_MISSING, problems=[problem])
        self._header = header_of(message.header) if self._sampling.logprobs else None
        self._seen = message.teacher
        return message.teacher

    def encode(self, item: Prompt) -> pb.Prompt:
        return pb.Prompt(item_id=item.item_id, ids=number_bytes(item.ids, "<i4", "ids", 1))

    def items(self, messages: Sequence[pb.Prompt]) -> pb.GenerateRequest:
        return pb.GenerateRequest(prompts=pb.Prompts(prompts=messages))

    def tokens(self, item: Prompt) -> int:
        return len(item.ids) + self._sampling.max_new_tokens

    def could_fit(self, item: Prompt, limits: pb.Limits) -> bool:
        """Whether the prompt is within the limits where nothing else is under way."""
        bytes_ = most_bytes(self._sampling, header_of_said(info_of(self._seen), self._sampling))
        tokens = self.tokens(item)
        return tokens <= (limits.tokens_in_flight or tokens) and bytes_ <= (limits.answer_bytes or bytes_)

    def reader(self, item: Prompt) -> Callable[[pb.Completion], Completion | None]:
        return CompletionReader(item, self._header).add
