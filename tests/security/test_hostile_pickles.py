"""Nothing that a stranger sends, stores or answers is unpickled outside the executors.

Every bytes and text field of every message, on every port of the control plane's processes, gets a pickle
that leaves a file when it is read. The same bait is live: an executor takes it.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import zmq
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

import ray_sched
from ray_sched.actors.group import Group
from ray_sched.actors.policy import CACHED_KEYS
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import SetLattice
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports, shared_pb2
from tests.security.conftest import CONFIG, MGMT
from tests.security.processes import listening

pytestmark = pytest.mark.cluster

HOST = CONFIG.host
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
PATIENCE_S = 30.0


class Bait:
    """Its pickle, when read, makes a file that is named after the reader's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"import os, pathlib; pathlib.Path({str(self.folder)!r}, str(os.getpid())).touch()",)

    def readers(self) -> set[int]:
        return {int(file.name) for file in self.folder.iterdir()}


@pytest.fixture
def bait(tmp_path: Path) -> Bait:
    return Bait(tmp_path)


def fields_of(kind: Any, seen: tuple[str, ...] = ()) -> set[str]:
    """The full names of all text and bytes fields within a message type."""
    found = set()
    for field in kind.DESCRIPTOR.fields if hasattr(kind, "DESCRIPTOR") else kind.fields:
        if field.type in TEXTS:
            found.add(field.full_name)
        elif field.message_type is not None and field.message_type.full_name not in seen:
            found |= fields_of(field.message_type, (*seen, field.message_type.full_name))
    return found


def places(message: Message) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    """Each text or bytes value within a message: its field's full name, and what replaces the value."""
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            key_name = f"{field.message_type.full_name}.key"
            yield key_name, lambda new, m=value: copy_entry(m, new)
            for key in list(value):
                if isinstance(value[key], Message):
                    yield from places(value[key])
                else:
                    name = f"{field.message_type.full_name}.value"
                    yield name, lambda new, m=value, k=key: m.__setitem__(k, new.decode())
        elif field.type in TEXTS:
            as_text = field.type == FieldDescriptor.TYPE_STRING

            def put(new: bytes, m: Message = message, f: Any = field, text: bool = as_text) -> None:
                given = new.decode() if text else new
                if f.label == f.LABEL_REPEATED if not hasattr(f, "is_repeated") else f.is_repeated:
                    getattr(m, f.name)[:] = [given]
                else:
                    setattr(m, f.name, given)

            yield field.full_name, put
        elif field.message_type is not None:
            for inner in value if not isinstance(value, Message) else [value]:
                yield from places(inner)


def copy_entry(entries: Any, key: bytes) -> None:
    old = next(iter(entries))
    if isinstance(entries[old], Message):
        entries[key.decode()].CopyFrom(entries[old])
    else:
        entries[key.decode()] = entries[old]


def hostile(sane: Message, bait: Bait) -> list[bytes]:
    """The message with the bait in each field, one at a time, then in all; then the bare bait."""
    text, raw = pickle.dumps(bait, 0), pickle.dumps(bait, 4)
    value = cb.Value(body=raw).SerializeToString()
    kind = type(sane)
    count = len(list(places(sane)))
    missing = fields_of(kind) - {name for name, _ in places(sane)}
    assert not missing, f"the example of a {kind.__name__} has no {missing}"
    made = []
    for number in range(count):
        for payload in (text, raw, value):
            message = kind.FromString(sane.SerializeToString())
            _, put = list(places(message))[number]
            try:
                put(payload)
            except (UnicodeDecodeError, ValueError):
                continue  # a text field cannot hold it
            made.append(message.SerializeToString())
    everywhere = kind.FromString(sane.SerializeToString())
    for _, put in list(places(everywhere)):
        put(text)
    return [*made, everywhere.SerializeToString(), text, raw, value]


def arguments() -> cb.Arguments:
    return cb.Arguments(values=[cb.Value(body=b"x")])


def continuation(name: str, *, deeper: bool = True) -> cb.Continuation:
    return cb.Continuation(
        name=name, id="hostile-continuation", result=cb.Value(body=b"x").SerializeToString(),
        call=dag_call(name, deeper=deeper),
    )  # fmt: skip


def dag_call(name: str, *, deeper: bool = True) -> cb.DagCall:
    call = cb.DagCall(
        name=name,
        response_address=f"tcp://{HOST}:45678",
        output_key="hostile-output",
        client_id="hostile-client",
        function_args={"hostile_f": arguments()},
    )
    if deeper:
        call.continuation.CopyFrom(continuation(name, deeper=False))
    return call


def function_call() -> cb.FunctionCall:
    return cb.FunctionCall(
        name="hostile_f",
        arguments=arguments(),
        response_key="hostile-response",
        locations=[HOST],
        source_hint=cb.STORAGE,
    )


def requests() -> dict[int, Message]:
    dag = cb.Dag(
        name="hostile_new",
        functions=[cb.Dag.FunctionReference(name="hostile_f", invalid_results=[b"x"], type=cb.MULTIEXEC)],
        connections=[cb.Dag.Link(source="hostile_f", sink="hostile_f")],
        colocated=["hostile_f"],
    )
    return {
        ports.CONNECT: cb.Value(body=b"x"),
        ports.FUNCTION_CREATE: cb.Function(name="hostile_g", body=b"x"),
        ports.FUNCTION_CALL: function_call(),
        ports.LIST: cb.Value(body=b"x"),
        ports.DAG_CREATE: dag,
        ports.DAG_CALL: dag_call("hostile_dag"),
        ports.DAG_DELETE: cb.Value(body=b"x"),
    }


def pushes() -> dict[int, Message]:
    location = internal_pb2.SchedulerStatus.FunctionLocation(name="hostile_f", ip="127.0.18.44", tid=1)
    return {
        ports.CALL_QUEUE: function_call(),
        ports.STATUS: internal_pb2.ThreadStatus(ip="127.0.18.44", tid=1, functions=["other"], running=True),
        ports.SCHEDULER_UPDATE: internal_pb2.SchedulerStatus(
            dags=["hostile_key"], function_locations=[location]
        ),
        ports.PIN_ACCEPT: cb.GenericResponse(success=True, response_id="127.0.18.44:1/other"),
        ports.CONTINUATION: continuation("hostile_dag"),
        ports.KVS_ROUTING: anna.KeyAddressRequest(
            response_address=f"tcp://{HOST}:45679", keys=["k"], request_id="1"
        ),
        ports.KVS_STORAGE: key_request(),
    }


def key_request() -> anna.KeyRequest:
    pair = anna.KeyTuple(key="hostile_key", lattice_type=anna.LWW, payload=b"x")
    return anna.KeyRequest(
        type=anna.PUT, tuples=[pair], response_address=f"tcp://{HOST}:45679", request_id="1"
    )


def lattices(raw: bytes) -> Iterator[tuple[int, bytes]]:
    yield anna.LWW, anna.LWWValue(timestamp=1 << 40, value=raw).SerializeToString()
    yield anna.SET, anna.SetValue(values=[raw]).SerializeToString()
    yield anna.SINGLE_CAUSAL, anna.SingleKeyCausalValue(values=[raw]).SerializeToString()
    yield anna.MULTI_CAUSAL, anna.MultiKeyCausalValue(values=[raw]).SerializeToString()
    yield anna.ORDERED_SET, anna.SetValue(values=[raw]).SerializeToString()
    yield anna.PRIORITY, anna.PriorityValue(priority=0.5, value=raw).SerializeToString()


class Stranger:
    """Sends raw bytes to any port of the group."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def ask(self, port: int, bodies: Iterable[bytes]) -> int:
        """Sends requests one after the other; each has to be answered."""
        socket = self.context.socket(zmq.REQ)
        socket.connect(ports.tcp(HOST, port))
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        answered = 0
        for body in bodies:
            socket.send(body)
            socket.recv()
            answered += 1
        socket.close(0)
        return answered

    def push(self, port: int, bodies: Iterable[bytes]) -> None:
        socket = self.context.socket(zmq.PUSH)
        socket.connect(ports.tcp(HOST, port))
        for body in bodies:
            socket.send(body)
        socket.close(5000)

    def close(self) -> None:
        self.context.term()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    stranger = Stranger()
    yield stranger
    stranger.close()


@pytest.fixture
def management(bait: Bait) -> Iterator[list[int]]:
    """A management node whose answer is the bait; the list grows with each answer."""
    answers: list[int] = []
    bodies = hostile(shared_pb2.StringSet(keys=["x"]), bait)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(ports.tcp(MGMT, ports.MGMT_SCHEDULERS))

    def answer() -> None:
        try:
            while True:
                frames = socket.recv_multipart()
                socket.send_multipart([*frames[:-1], bodies[len(answers) % len(bodies)]])
                answers.append(1)
        except zmq.ContextTerminated:
            socket.close(0)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield answers
    context.term()
    thread.join(10)


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_only_executors_take_the_bait(
    group: Group, bait: Bait, stranger: Stranger, management: list[int]
) -> None:
    with ray_sched.connect(HOST) as client:
        client.register(lambda library, *args: "fine", "hostile_f")
        client.register_dag("hostile_dag", ["hostile_f"])

        before = group.status()
        for port, sane in requests().items():
            bodies = hostile(sane, bait)
            assert stranger.ask(port, bodies) == len(bodies)
        pushed = {port: hostile(sane, bait) for port, sane in pushes().items()}
        for port, bodies in pushed.items():
            stranger.push(port, bodies)
        keys = [
            "hostile_key",
            CACHED_KEYS + HOST,
            "funcs/index-allfuncs",
            "hostile_output",
            "funcs/hostile_h",
        ]
        for raw in (pickle.dumps(bait, 0), pickle.dumps(bait, 4)):
            for kind, payload in lattices(raw):
                tuples = [anna.KeyTuple(key=key, lattice_type=kind, payload=payload) for key in keys]
                put = anna.KeyRequest(type=anna.PUT, tuples=tuples, response_address=f"tcp://{HOST}:45679")
                stranger.push(ports.KVS_STORAGE, [put.SerializeToString()])
        # What answers the clients of the store, and direct responses to the Scheduler.
        response = anna.KeyResponse(
            type=anna.GET, tuples=list(key_request().tuples), response_id=f"{HOST}:x:1"
        )
        found = anna.KeyAddressResponse(
            addresses=[anna.KeyAddressResponse.KeyAddress(key="k", ips=[f"tcp://{HOST}:6200"])],
            response_id=f"{HOST}:x:1",
        )
        ours = {status["pid"] for status in group.status().values()}
        others = {port for ip, port in listening(ours) if ip == HOST} - {*requests(), *pushed}
        answers = {port for port in others if port > ports.KVS_CLIENT_RESPONSE}
        assert len(answers) >= 4, "the Scheduler and the Policy have two each"
        for port in answers:
            stranger.push(port, [*hostile(response, bait), *hostile(found, bait)])

        with KvsClient(HOST, "127.0.18.7") as kvs:
            wait_for(lambda: isinstance(kvs.get("funcs/index-allfuncs"), SetLattice), "the index is there")
        client.list()
        statuses, updates = (len(pushed[port]) - 3 for port in (ports.STATUS, ports.SCHEDULER_UPDATE))
        # Without the last three, which are no messages.
        wait_for(lambda: counted(group, before, "ingress", "statuses") >= statuses, "statuses came")
        wait_for(lambda: counted(group, before, "gossip", "updates_taken") >= updates, "gossip came")
        wait_for(lambda: len(management) >= 8, "the management node was asked")

        # Results stay sealed on their way through the Scheduler: who asked for them reads them.
        scheduler = ray_sched.get_scheduler(group.name)
        client.register(lambda library, folder: Bait(folder), "hostile_result")
        client.register_dag("hostile_results", ["hostile_result"])
        assert os.getpid() not in bait.readers()
        ray.get(scheduler.call.remote("hostile_result", bait.folder), timeout=PATIENCE_S)
        ray.get(
            scheduler.call_dag.remote("hostile_results", {"hostile_result": [bait.folder]}),
            timeout=PATIENCE_S,
        )
        assert os.getpid() in bait.readers()
        client.function("hostile_f")(bait).get(timeout_s=PATIENCE_S)

    status = group.status()
    executors = {answer["pid"] for role, answer in status.items() if role.startswith("executor-")}
    control = {answer["pid"] for role, answer in status.items() if not role.startswith("executor-")}
    assert len(control) == 6
    assert bait.readers() & executors, "an executor has run what it was sent: the bait is live"
    assert not bait.readers() & control
    assert {role: answer["pid"] for role, answer in status.items()} == {
        role: answer["pid"] for role, answer in before.items()
    }, "nothing died of it"


def counted(group: Group, before: dict[str, dict[str, Any]], role: str, name: str) -> int:
    now = group.status()[role]["counts"].get(name, 0)
    return int(now) - int(before[role]["counts"].get(name, 0))
