from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_BFLOAT16: Dtype

class SignalHeader(_message.Message):
    __slots__ = ("codec", "version", "vocab_size", "k", "temperatures", "target", "tokenizer_digest", "template_digest", "weights_digest", "teacher", "tail_exact")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    TAIL_EXACT_FIELD_NUMBER: _ClassVar[int]
    codec: str
    version: int
    vocab_size: int
    k: int
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    target: bool
    tokenizer_digest: str
    template_digest: str
    weights_digest: str
    teacher: str
    tail_exact: bool
    def __init__(self, codec: _Optional[str] = ..., version: _Optional[int] = ..., vocab_size: _Optional[int] = ..., k: _Optional[int] = ..., temperatures: _Optional[_Iterable[float]] = ..., target: bool = ..., tokenizer_digest: _Optional[str] = ..., template_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., teacher: _Optional[str] = ..., tail_exact: bool = ...) -> None: ...

class PackedSignal(_message.Message):
    __slots__ = ("first_row", "n", "ids_low", "ids_high", "logprobs", "tails", "target")
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    IDS_LOW_FIELD_NUMBER: _ClassVar[int]
    IDS_HIGH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TAILS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    first_row: int
    n: int
    ids_low: bytes
    ids_high: bytes
    logprobs: bytes
    tails: bytes
    target: bytes
    def __init__(self, first_row: _Optional[int] = ..., n: _Optional[int] = ..., ids_low: _Optional[bytes] = ..., ids_high: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., tails: _Optional[bytes] = ..., target: _Optional[bytes] = ...) -> None: ...
