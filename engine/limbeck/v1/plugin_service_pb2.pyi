from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListPluginsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPluginsResponse(_message.Message):
    __slots__ = ("plugins", "failed", "recipe_schema")
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RECIPE_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    failed: _containers.RepeatedCompositeFieldContainer[FailedPlugin]
    recipe_schema: str
    def __init__(self, plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[FailedPlugin, _Mapping]]] = ..., recipe_schema: _Optional[str] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "kind", "distribution", "version", "summary", "config_schema")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Plugin.Kind]
        KIND_TEACHER: _ClassVar[Plugin.Kind]
        KIND_GENERATOR: _ClassVar[Plugin.Kind]
        KIND_LOSS: _ClassVar[Plugin.Kind]
        KIND_SCHEDULER: _ClassVar[Plugin.Kind]
    KIND_UNSPECIFIED: Plugin.Kind
    KIND_TEACHER: Plugin.Kind
    KIND_GENERATOR: Plugin.Kind
    KIND_LOSS: Plugin.Kind
    KIND_SCHEDULER: Plugin.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: Plugin.Kind
    distribution: str
    version: str
    summary: str
    config_schema: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[Plugin.Kind, str]] = ..., distribution: _Optional[str] = ..., version: _Optional[str] = ..., summary: _Optional[str] = ..., config_schema: _Optional[str] = ...) -> None: ...

class FailedPlugin(_message.Message):
    __slots__ = ("source", "error")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    source: str
    error: str
    def __init__(self, source: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...
