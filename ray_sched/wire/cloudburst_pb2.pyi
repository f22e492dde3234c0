from ray_sched.wire import shared_pb2 as _shared_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutionType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGULAR: _ClassVar[ExecutionType]
    MULTIEXEC: _ClassVar[ExecutionType]

class SerializerType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEFAULT: _ClassVar[SerializerType]
    NUMPY: _ClassVar[SerializerType]
    STRING: _ClassVar[SerializerType]

class CloudburstError(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_CLOUDBURST_ERROR: _ClassVar[CloudburstError]
    FUNC_NOT_FOUND: _ClassVar[CloudburstError]
    NOT_PINNED: _ClassVar[CloudburstError]
    EXECUTION_ERROR: _ClassVar[CloudburstError]
    NO_SUCH_DAG: _ClassVar[CloudburstError]
    NO_RESOURCES: _ClassVar[CloudburstError]
    DAG_ALREADY_EXISTS: _ClassVar[CloudburstError]

class ConsistencyType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMAL: _ClassVar[ConsistencyType]
    SINGLE: _ClassVar[ConsistencyType]
    MULTI: _ClassVar[ConsistencyType]

class CallSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIENT: _ClassVar[CallSource]
    STORAGE: _ClassVar[CallSource]
REGULAR: ExecutionType
MULTIEXEC: ExecutionType
DEFAULT: SerializerType
NUMPY: SerializerType
STRING: SerializerType
NO_CLOUDBURST_ERROR: CloudburstError
FUNC_NOT_FOUND: CloudburstError
NOT_PINNED: CloudburstError
EXECUTION_ERROR: CloudburstError
NO_SUCH_DAG: CloudburstError
NO_RESOURCES: CloudburstError
DAG_ALREADY_EXISTS: CloudburstError
NORMAL: ConsistencyType
SINGLE: ConsistencyType
MULTI: ConsistencyType
CLIENT: CallSource
STORAGE: CallSource

class Function(_message.Message):
    __slots__ = ("name", "body")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    name: str
    body: bytes
    def __init__(self, name: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("body", "type")
    BODY_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    type: SerializerType
    def __init__(self, body: _Optional[bytes] = ..., type: _Optional[_Union[SerializerType, str]] = ...) -> None: ...

class Arguments(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class FunctionCall(_message.Message):
    __slots__ = ("name", "request_id", "arguments", "response_key", "consistency", "locations", "source_hint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_KEY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: int
    arguments: Arguments
    response_key: str
    consistency: ConsistencyType
    locations: _containers.RepeatedScalarFieldContainer[str]
    source_hint: CallSource
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[int] = ..., arguments: _Optional[_Union[Arguments, _Mapping]] = ..., response_key: _Optional[str] = ..., consistency: _Optional[_Union[ConsistencyType, str]] = ..., locations: _Optional[_Iterable[str]] = ..., source_hint: _Optional[_Union[CallSource, str]] = ...) -> None: ...

class Dag(_message.Message):
    __slots__ = ("name", "functions", "connections", "colocated")
    class FunctionReference(_message.Message):
        __slots__ = ("name", "type", "invalid_results", "gpu", "batching")
        NAME_FIELD_NUMBER: _ClassVar[int]
        TYPE_FIELD_NUMBER: _ClassVar[int]
        INVALID_RESULTS_FIELD_NUMBER: _ClassVar[int]
        GPU_FIELD_NUMBER: _ClassVar[int]
        BATCHING_FIELD_NUMBER: _ClassVar[int]
        name: str
        type: ExecutionType
        invalid_results: _containers.RepeatedScalarFieldContainer[bytes]
        gpu: bool
        batching: bool
        def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[ExecutionType, str]] = ..., invalid_results: _Optional[_Iterable[bytes]] = ..., gpu: bool = ..., batching: bool = ...) -> None: ...
    class Link(_message.Message):
        __slots__ = ("source", "sink")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        SINK_FIELD_NUMBER: _ClassVar[int]
        source: str
        sink: str
        def __init__(self, source: _Optional[str] = ..., sink: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    COLOCATED_FIELD_NUMBER: _ClassVar[int]
    name: str
    functions: _containers.RepeatedCompositeFieldContainer[Dag.FunctionReference]
    connections: _containers.RepeatedCompositeFieldContainer[Dag.Link]
    colocated: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., functions: _Optional[_Iterable[_Union[Dag.FunctionReference, _Mapping]]] = ..., connections: _Optional[_Iterable[_Union[Dag.Link, _Mapping]]] = ..., colocated: _Optional[_Iterable[str]] = ...) -> None: ...

class DagCall(_message.Message):
    __slots__ = ("name", "function_args", "response_address", "consistency", "output_key", "client_id", "continuation")
    class FunctionArgsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Arguments
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Arguments, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_ARGS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_KEY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    function_args: _containers.MessageMap[str, Arguments]
    response_address: str
    consistency: ConsistencyType
    output_key: str
    client_id: str
    continuation: Continuation
    def __init__(self, name: _Optional[str] = ..., function_args: _Optional[_Mapping[str, Arguments]] = ..., response_address: _Optional[str] = ..., consistency: _Optional[_Union[ConsistencyType, str]] = ..., output_key: _Optional[str] = ..., client_id: _Optional[str] = ..., continuation: _Optional[_Union[Continuation, _Mapping]] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("name", "id", "result", "call")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    result: bytes
    call: DagCall
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ..., result: _Optional[bytes] = ..., call: _Optional[_Union[DagCall, _Mapping]] = ...) -> None: ...

class GenericResponse(_message.Message):
    __slots__ = ("success", "response_id", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    response_id: str
    error: CloudburstError
    def __init__(self, success: bool = ..., response_id: _Optional[str] = ..., error: _Optional[_Union[CloudburstError, str]] = ...) -> None: ...

class DagSchedule(_message.Message):
    __slots__ = ("id", "dag", "target_function", "consistency", "triggers", "locations", "arguments", "response_address", "output_key", "client_id", "start_time", "continuation")
    class LocationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Arguments
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Arguments, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    DAG_FIELD_NUMBER: _ClassVar[int]
    TARGET_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_KEY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    dag: Dag
    target_function: str
    consistency: ConsistencyType
    triggers: _containers.RepeatedScalarFieldContainer[str]
    locations: _containers.ScalarMap[str, str]
    arguments: _containers.MessageMap[str, Arguments]
    response_address: str
    output_key: str
    client_id: str
    start_time: float
    continuation: Continuation
    def __init__(self, id: _Optional[str] = ..., dag: _Optional[_Union[Dag, _Mapping]] = ..., target_function: _Optional[str] = ..., consistency: _Optional[_Union[ConsistencyType, str]] = ..., triggers: _Optional[_Iterable[str]] = ..., locations: _Optional[_Mapping[str, str]] = ..., arguments: _Optional[_Mapping[str, Arguments]] = ..., response_address: _Optional[str] = ..., output_key: _Optional[str] = ..., client_id: _Optional[str] = ..., start_time: _Optional[float] = ..., continuation: _Optional[_Union[Continuation, _Mapping]] = ...) -> None: ...

class DagTrigger(_message.Message):
    __slots__ = ("id", "target_function", "source", "arguments", "version_locations", "dependencies")
    class VersionLocationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _shared_pb2.KeyVersionList
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_shared_pb2.KeyVersionList, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    target_function: str
    source: str
    arguments: Arguments
    version_locations: _containers.MessageMap[str, _shared_pb2.KeyVersionList]
    dependencies: _containers.RepeatedCompositeFieldContainer[_shared_pb2.KeyVersion]
    def __init__(self, id: _Optional[str] = ..., target_function: _Optional[str] = ..., source: _Optional[str] = ..., arguments: _Optional[_Union[Arguments, _Mapping]] = ..., version_locations: _Optional[_Mapping[str, _shared_pb2.KeyVersionList]] = ..., dependencies: _Optional[_Iterable[_Union[_shared_pb2.KeyVersion, _Mapping]]] = ...) -> None: ...
