from limbeck.v1 import error_pb2 as _error_pb2
from limbeck.v1 import teacher_service_pb2 as _teacher_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToWorker(_message.Message):
    __slots__ = ("start", "score", "generate", "head", "cancel")
    START_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    start: Start
    score: ScoreCall
    generate: GenerateCall
    head: HeadCall
    cancel: CancelItems
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., score: _Optional[_Union[ScoreCall, _Mapping]] = ..., generate: _Optional[_Union[GenerateCall, _Mapping]] = ..., head: _Optional[_Union[HeadCall, _Mapping]] = ..., cancel: _Optional[_Union[CancelItems, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("name", "teacher")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    name: str
    teacher: str
    def __init__(self, name: _Optional[str] = ..., teacher: _Optional[str] = ...) -> None: ...

class ScoreCall(_message.Message):
    __slots__ = ("call", "want", "items")
    CALL_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    call: int
    want: _teacher_service_pb2.Want
    items: _containers.RepeatedCompositeFieldContainer[_teacher_service_pb2.ScoreItem]
    def __init__(self, call: _Optional[int] = ..., want: _Optional[_Union[_teacher_service_pb2.Want, _Mapping]] = ..., items: _Optional[_Iterable[_Union[_teacher_service_pb2.ScoreItem, _Mapping]]] = ...) -> None: ...

class GenerateCall(_message.Message):
    __slots__ = ("call", "sampling", "prompts")
    CALL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    call: int
    sampling: _teacher_service_pb2.Sampling
    prompts: _containers.RepeatedCompositeFieldContainer[_teacher_service_pb2.Prompt]
    def __init__(self, call: _Optional[int] = ..., sampling: _Optional[_Union[_teacher_service_pb2.Sampling, _Mapping]] = ..., prompts: _Optional[_Iterable[_Union[_teacher_service_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class HeadCall(_message.Message):
    __slots__ = ("call", "offset")
    CALL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    call: int
    offset: int
    def __init__(self, call: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class CancelItems(_message.Message):
    __slots__ = ("call", "places")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    call: int
    places: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, call: _Optional[int] = ..., places: _Optional[_Iterable[int]] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("ready", "failed", "answer", "done", "phase")
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ready: _teacher_service_pb2.Teacher
    failed: _error_pb2.Error
    answer: Answer
    done: CallDone
    phase: str
    def __init__(self, ready: _Optional[_Union[_teacher_service_pb2.Teacher, _Mapping]] = ..., failed: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., done: _Optional[_Union[CallDone, _Mapping]] = ..., phase: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("call", "place", "last", "cost", "response")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    call: int
    place: int
    last: bool
    cost: int
    response: bytes
    def __init__(self, call: _Optional[int] = ..., place: _Optional[int] = ..., last: bool = ..., cost: _Optional[int] = ..., response: _Optional[bytes] = ...) -> None: ...

class CallDone(_message.Message):
    __slots__ = ("call", "error")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call: int
    error: _error_pb2.Error
    def __init__(self, call: _Optional[int] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...
