"""A legacy client before a scheduler with executors: register, call, read the result, compose, delete."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from tests.wire.conftest import Scheduler
from tests.wire.players import (
    AnnaClient,
    LegacyClient,
    PlayedSink,
    Pusher,
    Record,
    decode,
    encode,
    messages,
    ports,
    until,
)

pytestmark = pytest.mark.cluster

GARBAGE = b"\xff\xff\xff\xff no protobuf message begins like this"
CLIENT_IP = "127.0.6.11"


@pytest.fixture
def client(executing: Scheduler) -> Iterator[LegacyClient]:
    with LegacyClient(executing.ip) as client:
        yield client


@pytest.fixture
def anna(client: LegacyClient, pusher: Pusher) -> Iterator[AnnaClient]:
    anna = AnnaClient(client.connect(), CLIENT_IP, pusher)
    yield anna
    anna.close()


@pytest.fixture
def word() -> str:
    """A prefix for the names of one test."""
    return f"t{uuid.uuid4().hex[:8]}_"


def pickled(value: Any) -> dict[str, Any]:
    return {"body": cloudpickle.dumps(value), "type": messages.DEFAULT}


def result(anna: AnnaClient, key: str) -> Any:
    """The Python value that is stored at a key, once it is there."""
    value = decode(messages.VALUE, anna.wait_for_lww(key))
    return plain(value)


def plain(value: Record) -> Any:
    return value.body.decode() if value.type == messages.STRING else pickle.loads(value.body)


def register(client: LegacyClient, word: str) -> tuple[str, str]:
    """`incr` and `square`; their first argument is the user library."""
    incr, square = word + "incr", word + "square"
    for name, function in ((incr, lambda cloudburst, x: x + 1), (square, lambda cloudburst, x: x * x)):
        reply = client.create_function(name, cloudpickle.dumps(function))
        assert reply == {"success": True, "response_id": reply.response_id, "error": 0}
    return incr, square


# --- the seven requests ---


def test_connect_names_the_key_value_store(client: LegacyClient, anna: AnnaClient) -> None:
    assert client.request(ports.CONNECT, b"anything") == client.connect().encode()
    assert anna.addresses("some key")


def test_functions_are_listed_by_prefix(client: LegacyClient, word: str) -> None:
    incr, square = register(client, word)
    assert sorted(client.list(word)) == [incr, square]
    assert client.list(word + "s") == [square]
    assert client.list(word + "x") == []
    assert {incr, square} <= set(client.list())


def test_a_function_is_stored_where_legacy_schedulers_look(
    client: LegacyClient, anna: AnnaClient, word: str
) -> None:
    body = cloudpickle.dumps(lambda cloudburst: word)
    client.create_function(word, body)
    assert anna.wait_for_lww(f"funcs/{word}") == body
    index = anna.get("funcs/index-allfuncs")
    assert index.lattice_type == messages.SET
    assert f"funcs/{word}".encode() in decode(messages.SET_VALUE, index.payload)["values"]


def test_a_call_leaves_its_result_in_the_store(client: LegacyClient, anna: AnnaClient, word: str) -> None:
    incr, square = register(client, word)
    reply = client.call(incr, [pickled(41)])
    assert (reply.success, reply.error) == (True, messages.NO_CLOUDBURST_ERROR)
    assert result(anna, reply.response_id) == 42
    reply = client.call(square, [pickled(12)], response_key=word + "result")
    assert reply.response_id == word + "result"
    assert result(anna, word + "result") == 144


def test_a_dag_leaves_its_result_in_the_store(client: LegacyClient, anna: AnnaClient, word: str) -> None:
    incr, square = register(client, word)
    dag = word + "dag"
    assert client.create_dag(dag, [incr, square], [(incr, square)]).success
    assert client.create_dag(dag, [incr], []).error == messages.DAG_ALREADY_EXISTS
    stored = decode(messages.DAG, anna.wait_for_lww(dag))
    assert [function.name for function in stored.functions] == [incr, square]

    reply = client.call_dag(dag, {incr: [pickled(3)]})
    assert (reply.success, reply.error) == (True, messages.NO_CLOUDBURST_ERROR)
    assert result(anna, reply.response_id) == 16
    reply = client.call_dag(dag, {incr: [pickled(4)]}, output_key=word + "out")
    assert reply.response_id == word + "out"
    assert result(anna, word + "out") == 25

    assert client.delete_dag(dag).success
    assert client.delete_dag(dag).error == messages.NO_SUCH_DAG
    assert client.call_dag(dag, {incr: [pickled(3)]}).error == messages.NO_SUCH_DAG


def test_a_dag_answers_directly(client: LegacyClient, sink: PlayedSink, word: str) -> None:
    incr, square = register(client, word)
    dag = word + "dag"
    assert client.create_dag(dag, [square, incr], [(square, incr)]).success
    for number in (2, 3):
        assert client.call_dag(dag, {square: [pickled(number)]}, response_address=sink.address).success
    assert sorted(plain(value) for value in sink.wait_for(2)) == [5, 10]
    assert client.delete_dag(dag).success


def test_a_reference_is_replaced_by_what_it_refers_to(
    client: LegacyClient, anna: AnnaClient, word: str
) -> None:
    incr, _ = register(client, word)
    stored = {"timestamp": 10, "value": encode(messages.VALUE, pickled(7))}
    assert anna.put(word + "key", messages.LWW, encode(messages.LWW_VALUE, stored)).error == messages.NO_ERROR
    reply = client.call(incr, [reference(word + "key")])
    assert result(anna, reply.response_id) == 8


def reference(key: str) -> dict[str, Any]:
    """A CloudburstReference as a legacy client pickles it (protocol 2): its class by name, its state."""
    name = key.encode()
    body = (
        b"\x80\x02ccloudburst.shared.reference\nCloudburstReference\n)\x81}("
        b"X\x03\x00\x00\x00keyX"
        + len(name).to_bytes(4, "little")
        + name
        + b"X\x0b\x00\x00\x00deserialize\x88ub."
    )
    return {"body": body, "type": messages.DEFAULT}


def test_what_a_function_raises_is_a_result(client: LegacyClient, anna: AnnaClient, word: str) -> None:
    def fails(cloudburst: Any) -> None:
        raise ValueError("on purpose")

    client.create_function(word, cloudpickle.dumps(fails))
    reply = client.call(word)
    assert reply.success
    assert anna.wait_for_lww(reply.response_id)
    incr, _ = register(client, word)
    assert result(anna, client.call(incr, [pickled(1)]).response_id) == 2


# --- what does not parse ---

PARSED = (ports.FUNCTION_CREATE, ports.FUNCTION_CALL, ports.DAG_CREATE, ports.DAG_CALL)
"""The request ports whose requests are messages; the others take any string."""


@pytest.mark.parametrize("port", ports.REQUEST_PORTS)
def test_garbage_gets_one_reply_and_nothing_dies(
    client: LegacyClient, anna: AnnaClient, word: str, port: int
) -> None:
    for raw in (GARBAGE, b"", b"\x00" * 3, b"\xc3\x28"):
        reply = client.request(port, raw)
        # No bytes at all are a message without fields, and may be taken for one.
        if port == ports.DAG_DELETE or (port in PARSED and raw):
            refusal = decode(messages.GENERIC_RESPONSE, reply)
            assert not refusal.success
            assert refusal.error != messages.NO_CLOUDBURST_ERROR
    incr, _ = register(client, word)
    assert result(anna, client.call(incr, [pickled(1)]).response_id) == 2


def test_garbage_on_a_push_port_is_dropped(
    executing: Scheduler, client: LegacyClient, anna: AnnaClient, pusher: Pusher, word: str
) -> None:
    for port in ports.PUSH_PORTS:
        for raw in (GARBAGE, b"", b"\x00" * 3):
            pusher.push(ports.tcp(executing.ip, port), raw)
    incr, square = register(client, word)
    dag = word + "dag"
    assert client.create_dag(dag, [incr, square], [(incr, square)]).success
    assert result(anna, client.call_dag(dag, {incr: [pickled(1)]}).response_id) == 4
    assert client.delete_dag(dag).success


def test_garbage_at_an_executor_is_dropped(
    executing: Scheduler, client: LegacyClient, anna: AnnaClient, pusher: Pusher, word: str
) -> None:
    layout = executing.layout
    for base in (layout.pin, layout.unpin, layout.call, layout.schedule, layout.trigger, layout.user_message):
        for tid in range(3):
            pusher.push(ports.tcp(executing.ip, base + tid), GARBAGE)
    incr, square = register(client, word)
    dag = word + "dag"
    assert client.create_dag(dag, [incr, square], [(incr, square)]).success
    assert result(anna, client.call_dag(dag, {incr: [pickled(1)]}).response_id) == 4
    assert client.delete_dag(dag).success


def test_a_function_that_nobody_registered_is_no_part_of_a_dag(client: LegacyClient, word: str) -> None:
    reply = client.create_dag(word + "dag", [word + "nobody"])
    assert not reply.success
    assert reply.error != messages.NO_CLOUDBURST_ERROR


# --- many at once ---


def test_many_clients_at_once_get_each_their_own_replies(
    executing: Scheduler, client: LegacyClient, anna: AnnaClient, word: str
) -> None:
    incr, square = register(client, word)
    dag = word + "dag"
    assert client.create_dag(dag, [incr, square], [(incr, square)]).success
    clients, calls = 12, 10
    mixed_up: list[str] = []

    def one(number: int) -> None:
        with LegacyClient(executing.ip, timeout_s=60) as own:
            for call in range(calls):
                key = f"{word}{number}_{call}"
                replies = (
                    own.call_dag(dag, {incr: [pickled(number)]}, output_key=key),
                    own.call(incr, [pickled(call)], response_key=key + "_call"),
                )
                if [reply.response_id for reply in replies] != [key, key + "_call"]:
                    mixed_up.append(key)
                if own.list(word) != [incr, square]:
                    mixed_up.append("list")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads)
    assert not mixed_up
    for number in range(clients):
        assert result(anna, f"{word}{number}_{calls - 1}") == (number + 1) ** 2
        assert result(anna, f"{word}{number}_{calls - 1}_call") == calls
    assert client.delete_dag(dag).success


def test_a_deleted_dag_leaves_room_for_others(client: LegacyClient, anna: AnnaClient, word: str) -> None:
    incr, square = register(client, word)
    for number in range(4):
        dag = f"{word}dag{number}"
        until(
            lambda name=dag: client.create_dag(name, [incr, square], [(incr, square)]).success,  # type: ignore[misc]
            "the executors did not come free",
        )
        assert result(anna, client.call_dag(dag, {incr: [pickled(number)]}).response_id) == (number + 1) ** 2
        assert client.delete_dag(dag).success
