"""The client against a scheduler that is played with nothing but the bytes of the wire contract."""

from __future__ import annotations

import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from ray_sched.client import Client, Continuation, DagFunction, connect
from ray_sched.core.destination import Destination
from ray_sched.errors import (
    BadMessageError,
    ConfigError,
    DagExistsError,
    ExecutionError,
    FunctionNotFoundError,
    InvalidDagError,
    KeyMissingError,
    KvsError,
    NoResourcesError,
    NoSuchDagError,
    NotRunningError,
    RefusedError,
    TimedOutError,
)
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import MultiCausal, OrderedSetLattice, SetLattice
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.last_resort import last_resort
from ray_sched.reference import CloudburstReference
from ray_sched.values import dumps, error_value, from_value, loads
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports, shared_pb2
from ray_sched.wire.codec import WANTS_REASON

IP = "127.0.4.11"
KVS_IP = "127.0.4.12"
LOCAL_IP = "127.0.4.13"
NOBODY_IP = "127.0.4.14"
PATIENCE_S = 20.0

OK = cb.GenericResponse(success=True).SerializeToString()


def accepted(response_id: str) -> bytes:
    return cb.GenericResponse(success=True, response_id=response_id).SerializeToString()


def refused(code: cb.CloudburstError) -> bytes:
    return cb.GenericResponse(error=code).SerializeToString()


Answer = Callable[[list[bytes]], list[bytes] | None]
"""The parts of a request to those of its reply; None for no reply at all."""


class PlayedScheduler:
    """Binds the request ports and answers as `answers` say; notes every request."""

    def __init__(self, ip: str) -> None:
        self.answers: dict[int, Answer] = {ports.CONNECT: lambda parts: [KVS_IP.encode()]}
        self.requests: queue.Queue[tuple[int, list[bytes]]] = queue.Queue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[zmq.Socket[bytes], int] = {}
        for port in ports.REQUEST_PORTS:
            router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
            router.linger = 0
            router.bind(f"tcp://{ip}:{port}")
            self._sockets[router] = port
        self._stop = self._context.socket(zmq.PULL)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def reply(self, port: int, *parts: bytes) -> None:
        self.answers[port] = lambda request: list(parts)

    def asked(self, port: int) -> bytes:
        """The next request, of one part, which has to be to that port."""
        got_port, parts = self.requests.get(timeout=PATIENCE_S)
        assert (got_port, len(parts)) == (port, 1)
        return parts[0]

    def close(self) -> None:
        with self._context.socket(zmq.PUSH) as stop:
            stop.connect("inproc://stop")
            stop.send(b"")
            self._thread.join(PATIENCE_S)
        self._context.destroy(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (*self._sockets, self._stop):
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                if socket is self._stop:
                    return
                frames = socket.recv_multipart()
                end = frames.index(b"", 1) + 1
                port, parts = self._sockets[socket], frames[end:]
                if port != ports.CONNECT:
                    self.requests.put((port, parts))
                answer = self.answers.get(port)
                reply = answer(parts) if answer else None
                if reply is not None:
                    socket.send_multipart([*frames[:end], *reply])


@pytest.fixture
def scheduler() -> Iterator[PlayedScheduler]:
    scheduler = PlayedScheduler(IP)
    yield scheduler
    scheduler.close()


@pytest.fixture(scope="module")
def kvs_server() -> Iterator[None]:
    store = Store()
    server = KvsServer(KVS_IP, store)
    server.start()
    yield
    server.stop()
    store.close()


@pytest.fixture
def kvs(kvs_server: None) -> Iterator[KvsClient]:
    with KvsClient(KVS_IP, LOCAL_IP) as kvs:
        yield kvs


@pytest.fixture
def client(scheduler: PlayedScheduler, kvs_server: None) -> Iterator[Client]:
    with connect(IP, local_ip=LOCAL_IP, timeout_s=PATIENCE_S) as client:
        yield client


def push(address: str, message: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = int(PATIENCE_S * 1000)
        socket.connect(address)
        socket.send(message)


# --- connect ---


def test_connect_asks_for_the_key_value_store(client: Client, kvs: KvsClient) -> None:
    client.put("by-client", [1, 2])
    assert loads(kvs.get_bytes("by-client") or b"") == [1, 2]
    assert client.get("by-client") == [1, 2]


def test_connect_to_nobody_says_so() -> None:
    with pytest.raises(NotRunningError, match=rf"{NOBODY_IP}:5000 within 0\.2 s"):
        connect(NOBODY_IP, local_ip=LOCAL_IP, timeout_s=0.2)


def test_connect_asks_again_when_the_first_try_is_lost(scheduler: PlayedScheduler) -> None:
    tries = 0

    def second_time(parts: list[bytes]) -> list[bytes] | None:
        nonlocal tries
        tries += 1
        return [KVS_IP.encode()] if tries > 1 else None

    scheduler.answers[ports.CONNECT] = second_time
    connect(IP, local_ip=LOCAL_IP, timeout_s=3.0).close()
    assert tries > 1


def test_connect_refuses_a_local_address_that_is_not_local(scheduler: PlayedScheduler) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        connect(IP, local_ip="192.0.2.1", timeout_s=PATIENCE_S)


def test_connect_refuses_a_host_that_is_none() -> None:
    with pytest.raises(NotRunningError, match="no such host"):
        connect("no such host", timeout_s=0.2)


# --- functions ---


def test_register_sends_the_serialized_function(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    factor = 2
    function = client.register(lambda library, x: factor * x, "double")
    assert function.name == "double"
    sent = cb.Function.FromString(scheduler.asked(ports.FUNCTION_CREATE))
    assert sent.name == "double"
    assert loads(sent.body)(None, 21) == 42


class Adder:
    def __init__(self, library: object, start: int) -> None:
        self.start = start

    def run(self, library: object, x: int) -> int:
        return self.start + x


def test_register_a_class_with_its_arguments(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    for given in ((Adder, (5,)), (Adder, 5)):
        client.register(given, "adder")
        cls, args = loads(cb.Function.FromString(scheduler.asked(ports.FUNCTION_CREATE)).body)
        assert (cls.__name__, args) == ("Adder", (5,))


def test_a_call_is_a_future_of_the_key_value_store(
    scheduler: PlayedScheduler, client: Client, kvs: KvsClient
) -> None:
    scheduler.reply(ports.LIST, shared_pb2.StringSet(keys=["square", "squareroot"]).SerializeToString())
    scheduler.reply(ports.FUNCTION_CALL, accepted("result-1"))
    square = client.function("square")
    assert scheduler.asked(ports.LIST) == b"square"
    future = square(3, "x", CloudburstReference("k"))
    call = cb.FunctionCall.FromString(scheduler.asked(ports.FUNCTION_CALL))
    assert call.name == "square"
    assert [from_value(value) for value in call.arguments.values] == [3, "x", CloudburstReference("k")]
    assert call.response_key == ""
    assert (future.id, future.key) == ("result-1", "result-1")
    assert not future.done()
    with pytest.raises(TimedOutError, match=r"function 'square' is at key 'result-1' within 0\.05 s"):
        future.get(timeout_s=0.05)
    kvs.put_bytes("result-1", dumps(9))
    assert future.get(timeout_s=PATIENCE_S) == 9
    assert future.done()


def test_a_result_that_comes_while_it_is_waited_for(
    scheduler: PlayedScheduler, client: Client, kvs: KvsClient
) -> None:
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    scheduler.reply(ports.FUNCTION_CALL, accepted("result-later"))
    future = client.register(len, "len").call([1])
    writer = threading.Timer(0.05, kvs.put_bytes, ("result-later", dumps(1)))
    writer.start()
    assert future.get(timeout_s=PATIENCE_S) == 1
    writer.join()


def test_call_carries_key_and_consistency(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    scheduler.reply(ports.FUNCTION_CALL, accepted("mine"))
    function = client.register(len, "len", consistency="single")
    scheduler.asked(ports.FUNCTION_CREATE)
    function.call(response_key="mine")
    call = cb.FunctionCall.FromString(scheduler.asked(ports.FUNCTION_CALL))
    assert (call.response_key, call.consistency) == ("mine", cb.SINGLE)
    function.call(consistency="multi")
    call = cb.FunctionCall.FromString(scheduler.asked(ports.FUNCTION_CALL))
    assert (call.response_key, call.consistency) == ("", cb.MULTI)


def test_a_future_as_an_argument_is_a_reference(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    scheduler.reply(ports.FUNCTION_CALL, accepted("first"))
    function = client.register(len, "len")
    scheduler.asked(ports.FUNCTION_CREATE)
    function(function(1))
    scheduler.asked(ports.FUNCTION_CALL)
    call = cb.FunctionCall.FromString(scheduler.asked(ports.FUNCTION_CALL))
    assert from_value(call.arguments.values[0]) == CloudburstReference("first")


def test_an_unknown_function_is_not_found(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.LIST, shared_pb2.StringSet(keys=["squareroot"]).SerializeToString())
    with pytest.raises(FunctionNotFoundError, match=r"'square'.*register it first"):
        client.function("square")


def test_list_sorts_names(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.LIST, shared_pb2.StringSet(keys=["b", "a"]).SerializeToString())
    assert client.list() == ["a", "b"]
    scheduler.reply(ports.LIST, b"")
    assert client.list("nothing") == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (cb.EXECUTION_ERROR, ExecutionError),
        (cb.FUNC_NOT_FOUND, FunctionNotFoundError),
        (cb.NO_RESOURCES, NoResourcesError),
    ],
)
def test_an_error_value_raises_its_error(
    scheduler: PlayedScheduler,
    client: Client,
    kvs: KvsClient,
    code: cb.CloudburstError,
    kind: type[RefusedError],
) -> None:
    key = f"failed-{code}"
    scheduler.reply(ports.FUNCTION_CREATE, OK)
    scheduler.reply(ports.FUNCTION_CALL, accepted(key))
    kvs.put_bytes(key, dumps(error_value("division by zero", code)))
    with pytest.raises(kind, match="function 'divide' failed: division by zero"):
        client.register(len, "divide")(0).get(timeout_s=PATIENCE_S)


def test_results_of_all_lattice_types(scheduler: PlayedScheduler, client: Client, kvs: KvsClient) -> None:
    kvs.put("a-set", SetLattice(frozenset([dumps("x"), dumps("y")])))
    kvs.put("a-list", OrderedSetLattice((dumps("x"), dumps("y"))))
    kvs.put("causal", MultiCausal({"client": 1}, {}, frozenset([dumps("only")])))
    assert sorted(client.get("a-set")) == ["x", "y"]
    assert client.get("a-list") == ["x", "y"]
    assert client.get("causal") == "only"
    scheduler.reply(ports.DAG_CALL, accepted("a-list"))
    assert client.call_dag("pipeline").get(timeout_s=PATIENCE_S) == ["x", "y"]


def test_keys_that_are_missing_or_unreadable(client: Client, kvs: KvsClient) -> None:
    with pytest.raises(KeyMissingError, match="'no-such-key'"):
        client.get("no-such-key")
    kvs.put_bytes("arrow", cb.Value(body=b"x", type=cb.NUMPY).SerializeToString())
    with pytest.raises(BadMessageError, match="send arrays as DEFAULT"):
        client.get("arrow")


# --- DAGs ---


def test_register_dag_sends_what_was_described(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CREATE, OK)
    client.register_dag(
        "pipeline",
        ["incr", DagFunction("square", gpu=True, batching=True, multiexec=True, invalid_results=(None, 0))],
        [("incr", "square")],
        colocated=["incr", "square"],
    )
    expected = cb.Dag(name="pipeline", colocated=["incr", "square"])
    expected.functions.add(name="incr")
    expected.functions.add(
        name="square", type=cb.MULTIEXEC, gpu=True, batching=True, invalid_results=[dumps(None), dumps(0)]
    )
    expected.connections.add(source="incr", sink="square")
    assert cb.Dag.FromString(scheduler.asked(ports.DAG_CREATE)) == expected


def test_a_direct_response_comes_to_the_future(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("schedule-1"))
    future = client.call_dag("pipeline", {"incr": [1, "x"]}, direct_response=True, client_id="me")
    call = cb.DagCall.FromString(scheduler.asked(ports.DAG_CALL))
    assert call.client_id == "me"
    assert [from_value(value) for value in call.function_args["incr"].values] == [1, "x"]
    assert call.response_address.startswith(f"tcp://{LOCAL_IP}:")
    assert (future.id, future.key, future.done()) == ("schedule-1", None, False)
    with pytest.raises(TimedOutError, match="DAG 'pipeline'"):
        future.get(timeout_s=0.01)
    push(call.response_address, dumps(4))
    assert future.get(timeout_s=PATIENCE_S) == 4
    assert future.get(timeout_s=0) == 4
    with pytest.raises(BadMessageError, match="no key to refer to"):
        client.call_dag("pipeline", {"incr": [future]})


def test_a_direct_error_value_raises(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("schedule-1"))
    future = client.call_dag("pipeline", direct_response=True)
    call = cb.DagCall.FromString(scheduler.asked(ports.DAG_CALL))
    push(call.response_address, dumps(error_value("boom", cb.EXECUTION_ERROR)))
    with pytest.raises(ExecutionError, match="DAG 'pipeline' failed: boom"):
        future.get(timeout_s=PATIENCE_S)


def test_a_direct_response_that_was_lost_has_its_error_value_at_the_calls_id(
    scheduler: PlayedScheduler, client: Client, kvs: KvsClient
) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("lost-1"))
    future = client.call_dag("pipeline", direct_response=True)
    kvs.put(*last_resort(Destination("lost-1", "", "lost-1", False, "base", False), "it was lost"))
    with pytest.raises(ExecutionError, match="it was lost"):
        future.get(timeout_s=PATIENCE_S)
    assert future.done()


def test_what_else_stands_at_the_id_is_not_taken_for_a_direct_response(
    scheduler: PlayedScheduler, client: Client, kvs: KvsClient
) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("taken-1"))
    kvs.put_bytes("taken-1", dumps("somebody else's"))
    future = client.call_dag("pipeline", direct_response=True)
    call = cb.DagCall.FromString(scheduler.asked(ports.DAG_CALL))
    with pytest.raises(TimedOutError):
        future.get(timeout_s=1.5)  # more than one look
    push(call.response_address, dumps("mine"))
    assert future.get(timeout_s=PATIENCE_S) == "mine"


def test_futures_that_are_dropped_free_their_sockets(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("schedule-1"))
    for _ in range(150):  # more than may wait at once
        client.call_dag("pipeline", direct_response=True)
        gc.collect(0)


def test_a_refused_direct_call_frees_its_socket(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, refused(cb.NO_SUCH_DAG))
    for _ in range(150):
        with pytest.raises(NoSuchDagError):
            client.call_dag("pipeline", direct_response=True)


def test_continuations_are_nested_calls(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("final"))
    then = Continuation("second", {"f": [2]}, Continuation("third", {}))
    client.call_dag(
        "first", {"f": [1]}, output_key="final", consistency="multi", client_id="me", continuation=then
    )
    call = cb.DagCall.FromString(scheduler.asked(ports.DAG_CALL))
    second = call.continuation
    assert (second.name, second.call.name, second.call.output_key) == ("second", "second", "final")
    assert from_value(second.call.function_args["f"].values[0]) == 2
    third = second.call.continuation
    assert (third.name, third.call.output_key, third.call.consistency) == ("third", "final", cb.MULTI)
    assert (call.client_id, second.call.client_id, third.call.client_id) == ("me", "me", "me")
    assert not third.call.HasField("continuation")


def test_delete_dag_sends_the_name(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_DELETE, OK)
    client.delete_dag("pipeline")
    assert scheduler.asked(ports.DAG_DELETE) == b"pipeline"


# --- refusals ---


REFUSALS = [
    (
        ports.FUNCTION_CREATE,
        cb.NO_RESOURCES,
        NoResourcesError,
        lambda c: c.register(len, "f"),
        "function 'f'",
    ),
    (ports.FUNCTION_CREATE, cb.EXECUTION_ERROR, RefusedError, lambda c: c.register(len, "f"), "function 'f'"),
    (ports.LIST, cb.NO_RESOURCES, NoResourcesError, lambda c: c.list("pre"), "'pre'"),
    (
        ports.DAG_CREATE,
        cb.DAG_ALREADY_EXISTS,
        DagExistsError,
        lambda c: c.register_dag("d", ["f"]),
        "DAG 'd'",
    ),
    (ports.DAG_CREATE, cb.EXECUTION_ERROR, InvalidDagError, lambda c: c.register_dag("d", ["f"]), "DAG 'd'"),
    (ports.DAG_CREATE, cb.FUNC_NOT_FOUND, FunctionNotFoundError, lambda c: c.register_dag("d", ["f"]), "'d'"),
    (ports.DAG_CALL, cb.NO_SUCH_DAG, NoSuchDagError, lambda c: c.call_dag("d"), "DAG 'd'"),
    (ports.DAG_CALL, cb.NO_RESOURCES, NoResourcesError, lambda c: c.call_dag("d"), "DAG 'd'"),
    (ports.DAG_DELETE, cb.NO_SUCH_DAG, NoSuchDagError, lambda c: c.delete_dag("d"), "DAG 'd'"),
    (ports.DAG_DELETE, cb.NO_CLOUDBURST_ERROR, RefusedError, lambda c: c.delete_dag("d"), "DAG 'd'"),
]


@pytest.mark.parametrize(("port", "code", "kind", "ask", "names"), REFUSALS)
def test_a_refusal_raises_what_it_means(
    scheduler: PlayedScheduler,
    client: Client,
    port: int,
    code: cb.CloudburstError,
    kind: type[RefusedError],
    ask: Callable[[Client], Any],
    names: str,
) -> None:
    scheduler.reply(port, refused(code))
    with pytest.raises(kind, match=names) as raised:
        ask(client)
    assert type(raised.value) is kind


@contextmanager
def telling_client(scheduler: PlayedScheduler) -> Iterator[Client]:
    """Of a scheduler that tells its reasons, as ours does."""
    scheduler.answers[ports.CONNECT] = lambda parts: (
        [KVS_IP.encode(), b""] if parts == [WANTS_REASON] else None
    )
    with connect(IP, local_ip=LOCAL_IP, timeout_s=PATIENCE_S) as client:
        yield client


def test_a_scheduler_that_tells_reasons_is_asked_for_them(scheduler: PlayedScheduler) -> None:
    with telling_client(scheduler) as client:
        scheduler.reply(ports.DAG_CREATE, refused(cb.EXECUTION_ERROR), b"it has a cycle: a, b")
        with pytest.raises(InvalidDagError, match="register DAG 'd': it has a cycle: a, b"):
            client.register_dag("d", ["a", "b"])
        assert scheduler.requests.get(timeout=PATIENCE_S)[1][1:] == [WANTS_REASON]
        scheduler.reply(ports.LIST, refused(cb.NO_RESOURCES), b"the store is away")
        with pytest.raises(NoResourcesError, match="list functions '': the store is away"):
            client.list()
        scheduler.reply(ports.DAG_CALL, accepted("id"), b"")
        assert client.call_dag("d").id == "id"


def test_replies_that_make_no_sense_are_bad_messages(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, b"\xff\xff")
    with pytest.raises(BadMessageError, match="not a GenericResponse"):
        client.call_dag("d")
    scheduler.reply(ports.DAG_CALL, OK, b"", b"")
    with pytest.raises(BadMessageError, match="3 parts"):
        client.call_dag("d")


# --- time-outs and threads ---


def test_a_request_without_a_reply_is_sent_once_and_the_next_one_works(
    scheduler: PlayedScheduler, client: Client
) -> None:
    with pytest.raises(TimedOutError, match=r"call DAG 'd'.*5005 within 0\.3 s"):
        client.call_dag("d", timeout_s=0.3)
    scheduler.asked(ports.DAG_CALL)
    scheduler.reply(ports.DAG_CALL, accepted("second"))
    assert client.call_dag("d").id == "second"
    scheduler.asked(ports.DAG_CALL)
    assert scheduler.requests.empty()


def test_a_slow_request_delays_no_other(scheduler: PlayedScheduler, client: Client) -> None:
    ended: queue.Queue[BaseException] = queue.Queue()

    def register() -> None:
        try:
            client.register_dag("slow", ["f"])
        except NotRunningError as error:
            ended.put(error)

    slow = threading.Thread(target=register)
    slow.start()
    scheduler.asked(ports.DAG_CREATE)  # and no answer
    scheduler.answers[ports.DAG_CREATE] = lambda parts: [OK]
    client.register_dag("fast", ["f"])
    scheduler.reply(ports.DAG_CALL, accepted("id"))
    assert client.call_dag("d").id == "id"
    client.close()  # ends the slow one, too
    assert "register DAG 'slow'" in str(ended.get(timeout=PATIENCE_S))
    slow.join(PATIENCE_S)


def test_many_threads_get_their_own_replies(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.answers[ports.DAG_CALL] = lambda parts: [accepted(cb.DagCall.FromString(parts[0]).name)]
    wrong: list[str] = []

    def call(number: int) -> None:
        for turn in range(30):
            name = f"{number}/{turn}"
            if client.call_dag(name).id != name:
                wrong.append(name)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert scheduler.requests.qsize() == 12 * 30


def test_a_closed_client_says_so(scheduler: PlayedScheduler, client: Client) -> None:
    scheduler.reply(ports.DAG_CALL, accepted("id"))
    future = client.call_dag("d", direct_response=True)
    client.close()
    client.close()
    with pytest.raises(NotRunningError, match="closed"):
        client.list()
    with pytest.raises(NotRunningError):
        future.get(timeout_s=PATIENCE_S)


# --- what cannot be sent ---

UNPICKLABLE = threading.Lock()


async def wait_async(_: Any) -> None:
    pass


def count(_: Any) -> Iterator[int]:
    yield 1


MISTAKES: list[tuple[str, type[Exception], Callable[[Client], Any]]] = [
    ("not empty", BadMessageError, lambda c: c.register(len, "")),
    ("not 5", BadMessageError, lambda c: c.register(len, 5)),
    ("UTF-8", BadMessageError, lambda c: c.register(len, "\ud800")),
    ("int cannot be called", BadMessageError, lambda c: c.register(5, "f")),
    ("`run` method", BadMessageError, lambda c: c.register((int, 5), "f")),
    ("as \\(class, its arguments\\)", BadMessageError, lambda c: c.register(Adder, "f")),
    ("use asyncio.run", BadMessageError, lambda c: c.register(wait_async, "f")),
    ("return a list", BadMessageError, lambda c: c.register(count, "f")),
    ("cannot be pickled: TypeError", BadMessageError, lambda c: c.register(lambda _: UNPICKLABLE, "f")),
    ("consistency 'odd'", BadMessageError, lambda c: c.register(len, "f", consistency="odd")),
    ("as a list", InvalidDagError, lambda c: c.register_dag("d", "functions")),
    ("at least one", InvalidDagError, lambda c: c.register_dag("d", [])),
    ("not empty", InvalidDagError, lambda c: c.register_dag("", ["f"])),
    ("not None", InvalidDagError, lambda c: c.register_dag("d", [None])),
    ("twice", InvalidDagError, lambda c: c.register_dag("d", ["f", "f"])),
    ("names 'g'", InvalidDagError, lambda c: c.register_dag("d", ["f"], [("f", "g")])),
    ("not a connection", InvalidDagError, lambda c: c.register_dag("d", ["f"], ["ff"])),
    ("'g' is to be colocated", InvalidDagError, lambda c: c.register_dag("d", ["f"], colocated=["g"])),
    (
        "not multiexec",
        InvalidDagError,
        lambda c: c.register_dag("d", [DagFunction("f", invalid_results=(1,))]),
    ),
    (
        "invalid result of 'f' cannot be pickled",
        InvalidDagError,
        lambda c: c.register_dag("d", [DagFunction("f", multiexec=True, invalid_results=(UNPICKLABLE,))]),
    ),
    ("not None", BadMessageError, lambda c: c.call_dag(None)),
    ("{function: ", BadMessageError, lambda c: c.call_dag("d", [1])),
    (
        "function 'f': give arguments as a list, not a int",
        BadMessageError,
        lambda c: c.call_dag("d", {"f": 1}),
    ),
    ("argument 2 cannot be pickled", BadMessageError, lambda c: c.call_dag("d", {"f": [1, UNPICKLABLE]})),
    ("consistency 'odd'", BadMessageError, lambda c: c.call_dag("d", consistency="odd")),
    ("not empty", BadMessageError, lambda c: c.call_dag("d", continuation=Continuation("", {}))),
    ("'next' is no Continuation", BadMessageError, lambda c: c.call_dag("d", continuation="next")),
    ("leave out", BadMessageError, lambda c: c.call_dag("d", output_key="k", direct_response=True)),
    ("not empty", BadMessageError, lambda c: c.delete_dag("")),
    ("not 3", BadMessageError, lambda c: c.function(3)),
    ("not empty", BadMessageError, lambda c: c.get("")),
    ("cannot be pickled", BadMessageError, lambda c: c.put("key", UNPICKLABLE)),
]


def test_in_a_forked_process_a_client_says_that_it_is_none_there(
    scheduler: PlayedScheduler, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To fork in a test would take every thread's locks along: another process id is all that tells."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(NotRunningError, match="does not outlive a fork: connect in the new process"):
        client.list()
    with pytest.raises(KvsError, match="does not outlive a fork: connect in the new process"):
        client.get("key")
    monkeypatch.undo()
    assert scheduler.requests.empty()


@pytest.mark.parametrize(("says", "kind", "make"), MISTAKES)
def test_mistakes_are_refused_before_anything_is_sent(
    scheduler: PlayedScheduler,
    client: Client,
    says: str,
    kind: type[Exception],
    make: Callable[[Client], Any],
) -> None:
    with pytest.raises(kind, match=says):
        make(client)
    assert scheduler.requests.empty()
