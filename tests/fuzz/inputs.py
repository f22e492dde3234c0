"""What may come from a network: noise, real messages that were damaged, valid messages with absurd content.

An input is a port and the frames of one message. All of it is a hypothesis strategy, so that what
fails is made as small as it can be, and can be written down.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from ray_sched.reference import CloudburstReference
from ray_sched.values import dumps, to_value
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports, shared_pb2
from ray_sched.wire.codec import WANTS_REASON

VECTORS: Final = json.loads((Path(__file__).parents[1] / "wire" / "vectors.json").read_text())["messages"]
REAL: Final = [bytes.fromhex(vector["hex"]) for vector in VECTORS]
KINDS: Final[tuple[type[Message], ...]] = (
    cb.Function, cb.FunctionCall, cb.Dag, cb.DagCall, cb.Continuation, cb.DagSchedule, cb.DagTrigger,
    cb.GenericResponse, cb.Value, internal_pb2.ThreadStatus, internal_pb2.PinFunction,
    internal_pb2.SchedulerStatus, shared_pb2.StringSet, anna.KeyRequest, anna.KeyResponse,
    anna.KeyAddressRequest, anna.KeyAddressResponse,
)  # fmt: skip

MEGABYTE: Final = 1 << 20
MAX_MESSAGE_BYTES: Final = 2 * MEGABYTE
MAX_CONTROL_BYTES: Final = MEGABYTE
"""What targets are to take at most, where they can be told so."""
NOWHERE: Final = "127.0.17.250"
"""A loopback address where nobody listens, but for the executor of a target that has one there."""
GROUP: Final = "fuzz"
"""The name of the scheduler group, where a target has one."""
MANY: Final = 10_000

KNOWN: Final = (
    "f", "d", "BEGIN", NOWHERE, f"tcp://{NOWHERE}:9000", "funcs/f", "funcs/index-allfuncs",
    f"ANNA_METADATA|cache_ip|{NOWHERE}", f"ray_sched/dags/{GROUP}", "x" * MEGABYTE,
)  # fmt: skip
ADDRESSES: Final = (
    "", "tcp://", "tcp://*:*", "tcp://*:0", f"tcp://{NOWHERE}:0", f"tcp://{NOWHERE}:99999", "tcp://[::1]:1",
    f"tcp://{NOWHERE}:9000;tcp://{NOWHERE}:9001", "ipc:///dev/null", "inproc://x", "pgm://x", "localhost",
    "tcp://no-such-host.invalid:5000", "tcp://" + "9" * 70_000, "not an address", f"{NOWHERE}:4", ":", "::1",
    "tcp://127.0.0.1:5000\0", "\x00", "../../x",
)  # fmt: skip
FLOATS: Final = (math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1e308, -1e-308)
INTEGERS: Final = (0, 1, 2, 3, 9, 10, 150, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
BODIES: Final = (
    b"", b"\x80", b"\x80\x04.", b"\xff" * 9, dumps(1), dumps(CloudburstReference("k", True)),
    to_value(None).body,
    b"\x80\x04" + b"(" * 100_000 + b".", b"\x80\x04\x8d" + b"\xff" * 8 + b"CloudburstReference.",
    b"cloudburst.shared.reference\nCloudburstReference\n" * 5000, b"\0" * MEGABYTE,
)  # fmt: skip

LIMITS: Final = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


def texts() -> st.SearchStrategy[str]:
    short = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    return st.sampled_from(KNOWN) | st.sampled_from(ADDRESSES) | short


@st.composite
def messages(draw: st.DrawFn, kind: type[Message] | None = None) -> bytes:
    """A message that parses, whatever it says."""
    chosen = draw(st.sampled_from(KINDS)) if kind is None else kind
    message = chosen()
    _fill(draw, message, depth=0)
    return message.SerializeToString()


def _fill(draw: st.DrawFn, message: Message, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and depth > 3:
            continue
        if not field.is_repeated:
            _set(draw, message, field, depth)
            continue
        container: Any = getattr(message, field.name)
        for _ in range(draw(st.integers(0, 3))):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                _fill_entry(draw, container, field.message_type, depth)
            elif field.message_type is not None:
                _fill(draw, container.add(), depth + 1)
            else:
                container.append(draw(_scalars(field)))


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        _fill(draw, part, depth + 1)
    else:
        setattr(message, field.name, draw(_scalars(field)))


def _fill_entry(draw: st.DrawFn, container: Any, entry: Descriptor, depth: int) -> None:
    key, value = (entry.fields_by_name[name] for name in ("key", "value"))
    if value.message_type is not None:
        _fill(draw, container[draw(_scalars(key))], depth + 1)
    else:
        container[draw(_scalars(key))] = draw(_scalars(value))


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return texts()
    if field.type == FieldDescriptor.TYPE_BYTES:
        inner = st.sampled_from([cb.Value, cb.GenericResponse, anna.LWWValue, anna.SetValue])
        return st.sampled_from(BODIES) | st.binary(max_size=20) | inner.flatmap(messages)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return st.sampled_from(FLOATS)
    low, high = LIMITS[field.type]
    usual = [number for number in INTEGERS if low <= number <= high]
    if field.enum_type is not None:
        usual = [*(value.number for value in field.enum_type.values), 77, -1]
    return st.sampled_from(usual) | st.integers(low, high)


def dag(functions: Sequence[str], links: Sequence[tuple[str, str]] = (), name: str = "big") -> bytes:
    made = cb.Dag(name=name)
    for function in functions:
        made.functions.add(name=function)
    for source, sink in links:
        made.connections.add(source=source, sink=sink)
    return made.SerializeToString()


def large_dags() -> list[bytes]:
    names = [f"f{number}" for number in range(MANY)]
    chain = list(itertools.pairwise(names))
    return [
        dag(names, chain),
        dag(names, [*chain, (names[-1], names[0])]),
        dag(names),
        dag(["f"] * MANY),
        dag(["f"], [("f", "f")] * MANY),
        dag(["f", "g"], [("f", "g")] * MANY),
        dag(["x" * MEGABYTE, "f"], [("x" * MEGABYTE, "f")]),
        dag(["f"], name="x" * MEGABYTE),
        dag(names, [(source, names[-1]) for source in names[:-1]]),
    ]


def large_messages() -> list[bytes]:
    status = internal_pb2.ThreadStatus(ip=NOWHERE, running=True, functions=[f"f{n}" for n in range(MANY)])
    gossip = internal_pb2.SchedulerStatus(dags=[f"d{n}" for n in range(MANY)])
    gossip.function_locations.add(name="f", ip="not an address", tid=2**32 - 1)
    arguments = cb.FunctionCall(name="f")
    arguments.arguments.values.extend([to_value(CloudburstReference("k", True))] * MANY)
    schedule = cb.DagSchedule(id="i", target_function="f", triggers=["t"] * MANY)
    get = anna.KeyRequest(type=anna.GET, response_address=f"tcp://{NOWHERE}:6460", request_id="r")
    for _ in range(MANY):
        get.tuples.add(key="big")
    return [m.SerializeToString() for m in (status, gossip, arguments, schedule, get)] + [b"\0" * MEGABYTE]


OVERSIZED: Final = [
    cb.Function(name="f", body=b"x" * size).SerializeToString()
    for size in (MAX_CONTROL_BYTES * 3 // 2, MAX_MESSAGE_BYTES * 3 // 2, MAX_MESSAGE_BYTES * 5 // 2)
]
"""Valid, and beyond one limit of the targets after the other: there are two, and either has another one at
twice as much, where the connection is closed."""
LARGE: Final = [*large_dags(), *large_messages()]
NOT_UTF_8: Final = [b"\x0a\x02\xff\xfe", b"\x0a\x02\xc3\x28", b"\x0a\x03\xed\xa0\x80", b"\x12\x02\xff\xfe"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real message after one to three accidents."""
    body = bytearray(draw(st.sampled_from(REAL) | messages()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "remove"])):
            case "flip" if at < len(body):
                body[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del body[at:]
            case "insert":
                body[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "double":
                body += body[:at]
            case "remove":
                del body[at : at + draw(st.integers(1, 4))]
    return bytes(body)


def usual() -> dict[int, list[bytes]]:
    """By port, what is carried out: of the function, the DAG and the executor that a target may have."""
    function = cb.Function(name="f", body=dumps(len))
    call = cb.FunctionCall(name="f", response_key="k")
    call.arguments.values.append(to_value(CloudburstReference("k", True)))
    dag_call = cb.DagCall(name="d", output_key="k", response_address=f"tcp://{NOWHERE}:9000")
    continued = cb.DagCall(name="d", continuation=cb.Continuation(id="i", name="d", call=dag_call))
    continuation = cb.Continuation(id="i", name="d", call=continued, result=to_value(1).SerializeToString())
    lww = anna.LWWValue(timestamp=2**64 - 1, value=dag(["f"], name="d")).SerializeToString()
    members = anna.SetValue(values=[b"funcs/f", b"\xff", b""]).SerializeToString()
    puts = [(anna.LWW, lww), (anna.LWW, anna.LWWValue(timestamp=1).SerializeToString()), (anna.SET, members)]
    status = internal_pb2.ThreadStatus(ip=NOWHERE, running=True, functions=["f", "d"], utilization=1.0)
    statuses = [
        _with(status, **changes)
        for changes in (
            {"tid": 1}, {"running": False}, {"type": internal_pb2.GPU}, {"process": 1}, {"process": 2},
            {"process": 1, "running": False}, {"reconnections": 2**31}, {"utilization": math.nan},
        )
    ]  # fmt: skip
    gossip = internal_pb2.SchedulerStatus(dags=["d", "f", "", "unknown"])
    for tid in (0, 1, 2**32 - 1):
        gossip.function_locations.add(name="f", ip=NOWHERE, tid=tid)
    answers = [
        cb.GenericResponse(success=success, response_id=name)
        for success in (True, False)
        for name in ("", f"{NOWHERE}:0/f", f"{NOWHERE}:1/f", f"{NOWHERE}:0/d", "/", ":/", f"{NOWHERE}:x/f")
    ]
    messages: dict[int, list[Message]] = {
        ports.FUNCTION_CREATE: [function, _with(function, name="g")],
        ports.FUNCTION_CALL: [call, _with(call, source_hint=cb.STORAGE, locations=[NOWHERE])],
        ports.DAG_CALL: [dag_call, continued],
        ports.CALL_QUEUE: [call, _with(call, response_key="")],
        ports.STATUS: [status, *statuses],
        ports.SCHEDULER_UPDATE: [gossip],
        ports.PIN_ACCEPT: [*answers],
        ports.CONTINUATION: [continuation, _with(continuation, result=b"\xff")],
        ports.KVS_ROUTING: [
            anna.KeyAddressRequest(keys=KNOWN[:-1], response_address=f"tcp://{NOWHERE}:6460")
        ],
        ports.KVS_STORAGE: [
            anna.KeyRequest(
                type=anna.PUT, tuples=[anna.KeyTuple(key=key, lattice_type=kind, payload=payload)]
            )
            for key in KNOWN[:-1]
            for kind, payload in puts
        ],
    }
    dags = [
        dag(["f"], name="d"),
        dag(["f", "g"], [("f", "g")], name="d"),
        dag(["f", "g", "d"], [("f", "g"), ("f", "d"), ("d", "g")], name="f"),
    ]
    texts = {ports.LIST: [b"", b"f"], ports.DAG_CREATE: dags, ports.DAG_DELETE: [b"d", b"f"]}
    return texts | {port: [m.SerializeToString() for m in of_port] for port, of_port in messages.items()}


M = TypeVar("M", bound=Message)


def _with(message: M, **changes: Any) -> M:
    changed = type(message)(**changes)
    copy = type(message)()
    copy.CopyFrom(message)
    for name in changes:
        copy.ClearField(name)  # type: ignore[arg-type]
    copy.MergeFrom(changed)
    return copy


USUAL: Final = usual()
KIND: Final[dict[int, type[Message]]] = {
    ports.FUNCTION_CREATE: cb.Function,
    ports.FUNCTION_CALL: cb.FunctionCall,
    ports.DAG_CREATE: cb.Dag,
    ports.DAG_CALL: cb.DagCall,
    ports.CALL_QUEUE: cb.FunctionCall,
    ports.STATUS: internal_pb2.ThreadStatus,
    ports.SCHEDULER_UPDATE: internal_pb2.SchedulerStatus,
    ports.PIN_ACCEPT: cb.GenericResponse,
    ports.CONTINUATION: cb.Continuation,
    ports.KVS_ROUTING: anna.KeyAddressRequest,
    ports.KVS_STORAGE: anna.KeyRequest,
    ports.CLASSIC.pin: internal_pb2.PinFunction,
    ports.CLASSIC.call: cb.FunctionCall,
    ports.CLASSIC.schedule: cb.DagSchedule,
    ports.CLASSIC.trigger: cb.DagTrigger,
}
"""What a port takes, where it is no text."""


def bodies() -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.binary(max_size=40),
        st.sampled_from(REAL),
        damaged(),
        messages(),
        st.sampled_from(NOT_UTF_8),
        st.sampled_from(LARGE),
    )


@st.composite
def meant_for(draw: st.DrawFn, port: int) -> bytes:
    """Mostly what the port takes, as far as its kind goes."""
    match draw(st.sampled_from(["usual", "usual", "kind", "kind", "oversized", "any", "any", "any"])):
        case "oversized":
            return draw(st.sampled_from(OVERSIZED))
        case "usual" if port in USUAL:
            return draw(st.sampled_from(USUAL[port]))
        case "kind" if port in KIND:
            return draw(messages(KIND[port]))
    return draw(bodies())


@st.composite
def frames(draw: st.DrawFn, port: int) -> list[bytes]:
    """Of one message: mostly as all peers send it, a request with an empty frame before it."""
    if not draw(st.integers(0, 3)):
        return draw(st.lists(bodies() | st.sampled_from([b"", WANTS_REASON, b"\0"]), min_size=1, max_size=5))
    body = draw(meant_for(port))
    if port not in ports.REQUEST_PORTS:
        return [body]
    return [b"", body, *([WANTS_REASON] if draw(st.booleans()) else [])]


def story(of: Sequence[int]) -> st.SearchStrategy[list[tuple[int, list[bytes]]]]:
    """Some messages one after the other, each to one of the ports."""
    message = st.sampled_from(of).flatmap(lambda port: st.tuples(st.just(port), frames(port)))
    return st.lists(message, min_size=1, max_size=6)
