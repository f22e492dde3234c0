"""The protocol's messages as field numbers: what WIRE.md's rows put on the network.

Enumerations travel as numbers; their members are the constants below.
"""

from __future__ import annotations

from typing import Final

from .protobuf import Field, Schema

# Value.type
DEFAULT, NUMPY, STRING = range(3)
# FunctionReference.type
REGULAR, MULTIEXEC = range(2)
# GenericResponse.error
(
    NO_CLOUDBURST_ERROR,
    FUNC_NOT_FOUND,
    NOT_PINNED,
    EXECUTION_ERROR,
    NO_SUCH_DAG,
    NO_RESOURCES,
    DAG_ALREADY_EXISTS,
) = range(7)
# consistency
NORMAL, SINGLE, MULTI = range(3)
# FunctionCall.source_hint
CLIENT, STORAGE = range(2)
# ThreadStatus.type
CPU, GPU = range(2)
# Anna: request type, lattice type, error
GET, PUT = 1, 2
LWW, SET, SINGLE_CAUSAL, MULTI_CAUSAL, ORDERED_SET, PRIORITY = range(1, 7)
NO_ERROR, KEY_DNE, WRONG_THREAD, TIMEOUT, LATTICE, NO_SERVERS = range(6)


def text(name: str) -> Field:
    return Field(name, "string")


def texts(name: str) -> Field:
    return Field(name, "string", repeated=True)


def raw(name: str) -> Field:
    return Field(name, "bytes")


def raws(name: str) -> Field:
    return Field(name, "bytes", repeated=True)


def uint(name: str) -> Field:
    return Field(name, "uint")


def flag(name: str) -> Field:
    return Field(name, "bool")


def double(name: str) -> Field:
    return Field(name, "double")


def doubles(name: str) -> Field:
    return Field(name, "double", repeated=True)


def one(name: str, schema: Schema) -> Field:
    return Field(name, "message", schema)


def many(name: str, schema: Schema) -> Field:
    return Field(name, "message", schema, repeated=True)


def by_name(name: str, schema: Schema) -> Field:
    return Field(name, "message", schema, mapped=True)


# shared
STRING_SET: Final = Schema("StringSet", {1: texts("keys")})
VECTOR_CLOCK: Final = Field("vector_clock", "uint", mapped=True)
KEY_VERSION: Final = Schema("KeyVersion", {1: text("key"), 2: VECTOR_CLOCK})
KEY_VERSION_LIST: Final = Schema("KeyVersionList", {1: many("keys", KEY_VERSION)})

# functions, DAGs and their calls
FUNCTION: Final = Schema("Function", {1: text("name"), 2: raw("body")})
VALUE: Final = Schema("Value", {1: raw("body"), 2: uint("type")})
ARGUMENTS: Final = Schema("Arguments", {1: many("values", VALUE)})
FUNCTION_CALL: Final = Schema(
    "FunctionCall",
    {
        1: text("name"),
        2: uint("request_id"),
        3: one("arguments", ARGUMENTS),
        4: text("response_key"),
        5: uint("consistency"),
        6: texts("locations"),
        7: uint("source_hint"),
    },
)
FUNCTION_REFERENCE: Final = Schema(
    "FunctionReference",
    {1: text("name"), 2: uint("type"), 3: raws("invalid_results"), 4: flag("gpu"), 5: flag("batching")},
)
LINK: Final = Schema("Link", {1: text("source"), 2: text("sink")})
DAG: Final = Schema(
    "Dag",
    {
        1: text("name"),
        2: many("functions", FUNCTION_REFERENCE),
        3: many("connections", LINK),
        4: texts("colocated"),
    },
)
_DAG_CALL_FIELDS: dict[int, Field] = {
    1: text("name"),
    2: by_name("function_args", ARGUMENTS),
    3: text("response_address"),
    4: uint("consistency"),
    5: text("output_key"),
    6: text("client_id"),
}
DAG_CALL: Final = Schema("DagCall", _DAG_CALL_FIELDS)
CONTINUATION: Final = Schema(
    "Continuation", {1: text("name"), 2: text("id"), 3: raw("result"), 4: one("call", DAG_CALL)}
)
_DAG_CALL_FIELDS[7] = one("continuation", CONTINUATION)  # the two messages hold each other
GENERIC_RESPONSE: Final = Schema(
    "GenericResponse", {1: flag("success"), 2: text("response_id"), 3: uint("error")}
)
DAG_SCHEDULE: Final = Schema(
    "DagSchedule",
    {
        1: text("id"),
        2: one("dag", DAG),
        3: text("target_function"),
        4: uint("consistency"),
        5: texts("triggers"),
        6: Field("locations", "string", mapped=True),
        7: by_name("arguments", ARGUMENTS),
        8: text("response_address"),
        9: text("output_key"),
        10: text("client_id"),
        11: double("start_time"),
        12: one("continuation", CONTINUATION),
    },
)
DAG_TRIGGER: Final = Schema(
    "DagTrigger",
    {
        1: text("id"),
        2: text("target_function"),
        3: text("source"),
        4: one("arguments", ARGUMENTS),
        5: by_name("version_locations", KEY_VERSION_LIST),
        6: many("dependencies", KEY_VERSION),
    },
)

# what executors, schedulers and the management node tell of themselves
THREAD_STATUS: Final = Schema(
    "ThreadStatus",
    {
        1: text("ip"),
        2: uint("tid"),
        3: texts("functions"),
        4: double("utilization"),
        5: flag("running"),
        6: uint("type"),
    },
)
FUNCTION_LOCATION: Final = Schema("FunctionLocation", {1: text("name"), 2: text("ip"), 3: uint("tid")})
SCHEDULER_STATUS: Final = Schema(
    "SchedulerStatus", {1: texts("dags"), 2: many("function_locations", FUNCTION_LOCATION)}
)
FUNCTION_STATISTICS: Final = Schema(
    "FunctionStatistics", {1: text("name"), 2: uint("call_count"), 3: doubles("runtime")}
)
DAG_STATISTICS: Final = Schema(
    "DagStatistics",
    {1: text("name"), 2: doubles("runtimes"), 3: doubles("interarrival"), 4: uint("call_count")},
)
EXECUTOR_STATISTICS: Final = Schema(
    "ExecutorStatistics", {1: many("functions", FUNCTION_STATISTICS), 2: many("dags", DAG_STATISTICS)}
)
PIN_FUNCTION: Final = Schema(
    "PinFunction", {1: text("name"), 2: text("response_address"), 3: flag("batching")}
)

# Anna
KEY_TUPLE: Final = Schema(
    "KeyTuple",
    {
        1: text("key"),
        2: uint("lattice_type"),
        3: uint("error"),
        4: raw("payload"),
        5: uint("address_cache_size"),
        6: flag("invalidate"),
    },
)
KEY_REQUEST: Final = Schema(
    "KeyRequest",
    {1: uint("type"), 2: many("tuples", KEY_TUPLE), 3: text("response_address"), 4: text("request_id")},
)
KEY_RESPONSE: Final = Schema(
    "KeyResponse",
    {1: uint("type"), 2: many("tuples", KEY_TUPLE), 3: text("response_id"), 4: uint("error")},
)
KEY_ADDRESS_REQUEST: Final = Schema(
    "KeyAddressRequest", {1: text("response_address"), 2: texts("keys"), 3: text("request_id")}
)
KEY_ADDRESS: Final = Schema("KeyAddress", {1: text("key"), 2: texts("ips")})
KEY_ADDRESS_RESPONSE: Final = Schema(
    "KeyAddressResponse", {1: many("addresses", KEY_ADDRESS), 2: uint("error"), 3: text("response_id")}
)
LWW_VALUE: Final = Schema("LWWValue", {1: Field("timestamp", "uint"), 2: raw("value")})
SET_VALUE: Final = Schema("SetValue", {1: raws("values")})
SINGLE_KEY_CAUSAL_VALUE: Final = Schema("SingleKeyCausalValue", {1: VECTOR_CLOCK, 2: raws("values")})
MULTI_KEY_CAUSAL_VALUE: Final = Schema(
    "MultiKeyCausalValue", {1: VECTOR_CLOCK, 2: many("dependencies", KEY_VERSION), 3: raws("values")}
)
PRIORITY_VALUE: Final = Schema("PriorityValue", {1: double("priority"), 2: raw("value")})

SCHEMAS: Final = {schema.name: schema for schema in list(globals().values()) if isinstance(schema, Schema)}
