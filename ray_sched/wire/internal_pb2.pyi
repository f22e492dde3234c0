from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CPU: _ClassVar[ExecutorType]
    GPU: _ClassVar[ExecutorType]
CPU: ExecutorType
GPU: ExecutorType

class ThreadStatus(_message.Message):
    __slots__ = ("ip", "tid", "functions", "utilization", "running", "type", "process", "reconnections")
    IP_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    RECONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    ip: str
    tid: int
    functions: _containers.RepeatedScalarFieldContainer[str]
    utilization: float
    running: bool
    type: ExecutorType
    process: int
    reconnections: int
    def __init__(self, ip: _Optional[str] = ..., tid: _Optional[int] = ..., functions: _Optional[_Iterable[str]] = ..., utilization: _Optional[float] = ..., running: bool = ..., type: _Optional[_Union[ExecutorType, str]] = ..., process: _Optional[int] = ..., reconnections: _Optional[int] = ...) -> None: ...

class SchedulerStatus(_message.Message):
    __slots__ = ("dags", "function_locations")
    class FunctionLocation(_message.Message):
        __slots__ = ("name", "ip", "tid")
        NAME_FIELD_NUMBER: _ClassVar[int]
        IP_FIELD_NUMBER: _ClassVar[int]
        TID_FIELD_NUMBER: _ClassVar[int]
        name: str
        ip: str
        tid: int
        def __init__(self, name: _Optional[str] = ..., ip: _Optional[str] = ..., tid: _Optional[int] = ...) -> None: ...
    DAGS_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    dags: _containers.RepeatedScalarFieldContainer[str]
    function_locations: _containers.RepeatedCompositeFieldContainer[SchedulerStatus.FunctionLocation]
    def __init__(self, dags: _Optional[_Iterable[str]] = ..., function_locations: _Optional[_Iterable[_Union[SchedulerStatus.FunctionLocation, _Mapping]]] = ...) -> None: ...

class ExecutorStatistics(_message.Message):
    __slots__ = ("functions", "dags")
    class FunctionStatistics(_message.Message):
        __slots__ = ("name", "call_count", "runtime")
        NAME_FIELD_NUMBER: _ClassVar[int]
        CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
        RUNTIME_FIELD_NUMBER: _ClassVar[int]
        name: str
        call_count: int
        runtime: _containers.RepeatedScalarFieldContainer[float]
        def __init__(self, name: _Optional[str] = ..., call_count: _Optional[int] = ..., runtime: _Optional[_Iterable[float]] = ...) -> None: ...
    class DagStatistics(_message.Message):
        __slots__ = ("name", "runtimes", "interarrival", "call_count")
        NAME_FIELD_NUMBER: _ClassVar[int]
        RUNTIMES_FIELD_NUMBER: _ClassVar[int]
        INTERARRIVAL_FIELD_NUMBER: _ClassVar[int]
        CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
        name: str
        runtimes: _containers.RepeatedScalarFieldContainer[float]
        interarrival: _containers.RepeatedScalarFieldContainer[float]
        call_count: int
        def __init__(self, name: _Optional[str] = ..., runtimes: _Optional[_Iterable[float]] = ..., interarrival: _Optional[_Iterable[float]] = ..., call_count: _Optional[int] = ...) -> None: ...
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    DAGS_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedCompositeFieldContainer[ExecutorStatistics.FunctionStatistics]
    dags: _containers.RepeatedCompositeFieldContainer[ExecutorStatistics.DagStatistics]
    def __init__(self, functions: _Optional[_Iterable[_Union[ExecutorStatistics.FunctionStatistics, _Mapping]]] = ..., dags: _Optional[_Iterable[_Union[ExecutorStatistics.DagStatistics, _Mapping]]] = ...) -> None: ...

class PinFunction(_message.Message):
    __slots__ = ("name", "response_address", "batching", "request")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    response_address: str
    batching: bool
    request: str
    def __init__(self, name: _Optional[str] = ..., response_address: _Optional[str] = ..., batching: bool = ..., request: _Optional[str] = ...) -> None: ...
