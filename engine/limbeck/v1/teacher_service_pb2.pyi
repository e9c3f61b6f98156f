from limbeck.v1 import error_pb2 as _error_pb2
from limbeck.v1 import signal_pb2 as _signal_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListTeachersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTeachersResponse(_message.Message):
    __slots__ = ("teachers", "datasets")
    TEACHERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    teachers: _containers.RepeatedCompositeFieldContainer[Teacher]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    def __init__(self, teachers: _Optional[_Iterable[_Union[Teacher, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ...) -> None: ...

class GetTeacherRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetTeacherResponse(_message.Message):
    __slots__ = ("teacher",)
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    teacher: Teacher
    def __init__(self, teacher: _Optional[_Union[Teacher, _Mapping]] = ...) -> None: ...

class Teacher(_message.Message):
    __slots__ = ("name", "plugin", "state", "error", "vocab_size", "tokenizer_digest", "template_digest", "weights_digest", "max_length", "capabilities", "eos_ids", "bos_id", "temperatures", "tail_exact", "hidden_size", "num_layers", "parameters", "limits", "phase", "phase_seconds", "max_top_k")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Teacher.State]
        STATE_STARTING: _ClassVar[Teacher.State]
        STATE_READY: _ClassVar[Teacher.State]
        STATE_FAILED: _ClassVar[Teacher.State]
    STATE_UNSPECIFIED: Teacher.State
    STATE_STARTING: Teacher.State
    STATE_READY: Teacher.State
    STATE_FAILED: Teacher.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    BOS_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    TAIL_EXACT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    name: str
    plugin: str
    state: Teacher.State
    error: _error_pb2.Error
    vocab_size: int
    tokenizer_digest: str
    template_digest: str
    weights_digest: str
    max_length: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    bos_id: int
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    tail_exact: bool
    hidden_size: int
    num_layers: int
    parameters: int
    limits: Limits
    phase: str
    phase_seconds: float
    max_top_k: int
    def __init__(self, name: _Optional[str] = ..., plugin: _Optional[str] = ..., state: _Optional[_Union[Teacher.State, str]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., vocab_size: _Optional[int] = ..., tokenizer_digest: _Optional[str] = ..., template_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., max_length: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ..., eos_ids: _Optional[_Iterable[int]] = ..., bos_id: _Optional[int] = ..., temperatures: _Optional[_Iterable[float]] = ..., tail_exact: bool = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., parameters: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., phase: _Optional[str] = ..., phase_seconds: _Optional[float] = ..., max_top_k: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("tokens_in_flight", "answer_bytes", "streams")
    TOKENS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    tokens_in_flight: int
    answer_bytes: int
    streams: int
    def __init__(self, tokens_in_flight: _Optional[int] = ..., answer_bytes: _Optional[int] = ..., streams: _Optional[int] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "total", "header")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    name: str
    total: int
    header: _signal_pb2.SignalHeader
    def __init__(self, name: _Optional[str] = ..., total: _Optional[int] = ..., header: _Optional[_Union[_signal_pb2.SignalHeader, _Mapping]] = ...) -> None: ...

class Expectation(_message.Message):
    __slots__ = ("tokenizer_digest", "weights_digest", "vocab_size")
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    tokenizer_digest: str
    weights_digest: str
    vocab_size: int
    def __init__(self, tokenizer_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("top_k", "temperatures", "target", "token_ids", "samples", "layers", "hidden_dtype", "full")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_DTYPE_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    target: bool
    token_ids: bool
    samples: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_dtype: _signal_pb2.Dtype
    full: bool
    def __init__(self, top_k: _Optional[int] = ..., temperatures: _Optional[_Iterable[float]] = ..., target: bool = ..., token_ids: bool = ..., samples: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., hidden_dtype: _Optional[_Union[_signal_pb2.Dtype, str]] = ..., full: bool = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("item_id", "ids", "first_row", "n", "token_ids", "offsets", "seed")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    ids: bytes
    first_row: int
    n: int
    token_ids: bytes
    offsets: bytes
    seed: int
    def __init__(self, item_id: _Optional[int] = ..., ids: _Optional[bytes] = ..., first_row: _Optional[int] = ..., n: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., offsets: _Optional[bytes] = ..., seed: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("start", "items", "grant", "cancel", "alive")
    START_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    start: ScoreStart
    items: ScoreItems
    grant: Grant
    cancel: Cancel
    alive: Alive
    def __init__(self, start: _Optional[_Union[ScoreStart, _Mapping]] = ..., items: _Optional[_Union[ScoreItems, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class ScoreStart(_message.Message):
    __slots__ = ("teacher", "want", "expectation", "credit")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    EXPECTATION_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    want: Want
    expectation: Expectation
    credit: int
    def __init__(self, teacher: _Optional[str] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., expectation: _Optional[_Union[Expectation, _Mapping]] = ..., credit: _Optional[int] = ...) -> None: ...

class ScoreItems(_message.Message):
    __slots__ = ("items", "alone")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    alone: bool
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., alone: bool = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("item_id",)
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    def __init__(self, item_id: _Optional[int] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ("position", "phase", "phase_seconds")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    position: int
    phase: str
    phase_seconds: float
    def __init__(self, position: _Optional[int] = ..., phase: _Optional[str] = ..., phase_seconds: _Optional[float] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("started", "fragment", "failed", "alive")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    started: ScoreStarted
    fragment: Fragment
    failed: ItemFailed
    alive: Alive
    def __init__(self, started: _Optional[_Union[ScoreStarted, _Mapping]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ..., failed: _Optional[_Union[ItemFailed, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class ScoreStarted(_message.Message):
    __slots__ = ("teacher", "header")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    teacher: Teacher
    header: _signal_pb2.SignalHeader
    def __init__(self, teacher: _Optional[_Union[Teacher, _Mapping]] = ..., header: _Optional[_Union[_signal_pb2.SignalHeader, _Mapping]] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("item_id", "last", "cost", "signal", "token_logprobs", "samples", "hidden", "full")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    last: bool
    cost: int
    signal: _signal_pb2.PackedSignal
    token_logprobs: bytes
    samples: Samples
    hidden: _containers.RepeatedCompositeFieldContainer[HiddenStates]
    full: bytes
    def __init__(self, item_id: _Optional[int] = ..., last: bool = ..., cost: _Optional[int] = ..., signal: _Optional[_Union[_signal_pb2.PackedSignal, _Mapping]] = ..., token_logprobs: _Optional[bytes] = ..., samples: _Optional[_Union[Samples, _Mapping]] = ..., hidden: _Optional[_Iterable[_Union[HiddenStates, _Mapping]]] = ..., full: _Optional[bytes] = ...) -> None: ...

class Samples(_message.Message):
    __slots__ = ("ids", "counts", "logprobs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    counts: bytes
    logprobs: bytes
    def __init__(self, ids: _Optional[bytes] = ..., counts: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ...) -> None: ...

class HiddenStates(_message.Message):
    __slots__ = ("layer", "dtype", "final_norm", "values")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FINAL_NORM_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    layer: int
    dtype: _signal_pb2.Dtype
    final_norm: bool
    values: bytes
    def __init__(self, layer: _Optional[int] = ..., dtype: _Optional[_Union[_signal_pb2.Dtype, str]] = ..., final_norm: bool = ..., values: _Optional[bytes] = ...) -> None: ...

class ItemFailed(_message.Message):
    __slots__ = ("item_id", "error")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    error: _error_pb2.Error
    def __init__(self, item_id: _Optional[int] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("start", "prompts", "cancel", "alive")
    START_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    start: GenerateStart
    prompts: Prompts
    cancel: Cancel
    alive: Alive
    def __init__(self, start: _Optional[_Union[GenerateStart, _Mapping]] = ..., prompts: _Optional[_Union[Prompts, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class GenerateStart(_message.Message):
    __slots__ = ("teacher", "sampling", "expectation")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXPECTATION_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    sampling: Sampling
    expectation: Expectation
    def __init__(self, teacher: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., expectation: _Optional[_Union[Expectation, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "logprobs")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    logprobs: int
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ...) -> None: ...

class Prompts(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("item_id", "ids")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    ids: bytes
    def __init__(self, item_id: _Optional[int] = ..., ids: _Optional[bytes] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "completion", "failed", "alive")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    started: GenerateStarted
    completion: Completion
    failed: ItemFailed
    alive: Alive
    def __init__(self, started: _Optional[_Union[GenerateStarted, _Mapping]] = ..., completion: _Optional[_Union[Completion, _Mapping]] = ..., failed: _Optional[_Union[ItemFailed, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class GenerateStarted(_message.Message):
    __slots__ = ("teacher", "header")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    teacher: Teacher
    header: _signal_pb2.SignalHeader
    def __init__(self, teacher: _Optional[_Union[Teacher, _Mapping]] = ..., header: _Optional[_Union[_signal_pb2.SignalHeader, _Mapping]] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("item_id", "ids", "finish_reason", "said", "end_id", "more")
    class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FINISH_REASON_UNSPECIFIED: _ClassVar[Completion.FinishReason]
        FINISH_REASON_STOP: _ClassVar[Completion.FinishReason]
        FINISH_REASON_LENGTH: _ClassVar[Completion.FinishReason]
    FINISH_REASON_UNSPECIFIED: Completion.FinishReason
    FINISH_REASON_STOP: Completion.FinishReason
    FINISH_REASON_LENGTH: Completion.FinishReason
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    END_ID_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    ids: bytes
    finish_reason: Completion.FinishReason
    said: _signal_pb2.PackedSignal
    end_id: int
    more: bool
    def __init__(self, item_id: _Optional[int] = ..., ids: _Optional[bytes] = ..., finish_reason: _Optional[_Union[Completion.FinishReason, str]] = ..., said: _Optional[_Union[_signal_pb2.PackedSignal, _Mapping]] = ..., end_id: _Optional[int] = ..., more: bool = ...) -> None: ...

class GetOutputHeadRequest(_message.Message):
    __slots__ = ("teacher",)
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    def __init__(self, teacher: _Optional[str] = ...) -> None: ...

class GetOutputHeadResponse(_message.Message):
    __slots__ = ("head", "chunk")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    head: OutputHead
    chunk: Chunk
    def __init__(self, head: _Optional[_Union[OutputHead, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class OutputHead(_message.Message):
    __slots__ = ("vocab_size", "hidden_size", "dtype", "bias", "scale", "softcap", "bytes", "sha256")
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    vocab_size: int
    hidden_size: int
    dtype: _signal_pb2.Dtype
    bias: bool
    scale: float
    softcap: float
    bytes: int
    sha256: str
    def __init__(self, vocab_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., dtype: _Optional[_Union[_signal_pb2.Dtype, str]] = ..., bias: bool = ..., scale: _Optional[float] = ..., softcap: _Optional[float] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StreamSignalsRequest(_message.Message):
    __slots__ = ("dataset", "after_sequence", "with_tokens", "expectation")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WITH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTATION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    after_sequence: int
    with_tokens: bool
    expectation: Expectation
    def __init__(self, dataset: _Optional[str] = ..., after_sequence: _Optional[int] = ..., with_tokens: bool = ..., expectation: _Optional[_Union[Expectation, _Mapping]] = ...) -> None: ...

class StreamSignalsResponse(_message.Message):
    __slots__ = ("started", "signals", "alive")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    started: SignalsStarted
    signals: StoredSignals
    alive: Alive
    def __init__(self, started: _Optional[_Union[SignalsStarted, _Mapping]] = ..., signals: _Optional[_Union[StoredSignals, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class SignalsStarted(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class StoredSignals(_message.Message):
    __slots__ = ("signals",)
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    signals: _containers.RepeatedCompositeFieldContainer[StoredSignal]
    def __init__(self, signals: _Optional[_Iterable[_Union[StoredSignal, _Mapping]]] = ...) -> None: ...

class StoredSignal(_message.Message):
    __slots__ = ("sequence", "signal", "ids_sha256", "tokens")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    IDS_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    signal: _signal_pb2.PackedSignal
    ids_sha256: bytes
    tokens: Tokens
    def __init__(self, sequence: _Optional[int] = ..., signal: _Optional[_Union[_signal_pb2.PackedSignal, _Mapping]] = ..., ids_sha256: _Optional[bytes] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("ids", "trained", "pair", "rejected")
    IDS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    trained: bytes
    pair: int
    rejected: bool
    def __init__(self, ids: _Optional[bytes] = ..., trained: _Optional[bytes] = ..., pair: _Optional[int] = ..., rejected: bool = ...) -> None: ...
