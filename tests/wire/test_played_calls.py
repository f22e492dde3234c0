"""Calls come in: the exact messages that a legacy executor then gets, and the client's reply."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.wire.conftest import Scheduler, told_of
from tests.wire.players import (
    AnnaClient,
    PlayedExecutor,
    PlayedSink,
    PlayedStorageTier,
    Record,
    Stage,
    dag,
    decode,
    encode,
    messages,
    ports,
    until,
)

pytestmark = pytest.mark.cluster

ARGUMENTS = {
    entry["name"]: bytes.fromhex(entry["hex"])
    for entry in json.loads((Path(__file__).parent / "vectors.json").read_text())["arguments"]
}
ONE = {"body": ARGUMENTS["plain_int"], "type": messages.DEFAULT}
WORD = {"body": "hé".encode(), "type": messages.STRING}


def as_sent(functions: list[Any], links: list[tuple[str, str]], name: str) -> Record:
    return decode(messages.DAG, encode(messages.DAG, dag(name, functions, links)))


# --- DAGs ---


def test_each_function_of_a_dag_gets_its_schedule(stage: Stage) -> None:
    stage.executors(3)
    a, b, c, d = (stage.function(word) for word in "abcd")
    links = [(a, b), (a, c), (b, d), (c, d)]
    functions: list[Any] = [
        a,
        {"name": b, "batching": True},
        {"name": c, "type": messages.MULTIEXEC, "invalid_results": [b"x"]},
        d,
    ]
    name = stage.create_dag(functions, links)

    before_s = time.time()
    arguments = {a: [ONE, WORD], d: [WORD]}
    reply = stage.client.call_dag(
        name,
        arguments,
        response_address="tcp://127.0.6.10:9000",
        consistency=messages.MULTI,
        client_id="client 1",
    )
    assert (reply.success, reply.error) == (True, messages.NO_CLOUDBURST_ERROR)
    uuid.UUID(reply.response_id)

    got = {function: stage.receiver("schedule", target_function=function) for function in (a, b, c, d)}
    locations = {function: executor.location for function, (executor, _) in got.items()}
    triggers = {a: ["BEGIN"], b: [a], c: [a], d: [b, c]}
    for function, (_, schedule) in got.items():
        assert before_s <= schedule.start_time <= time.time()
        assert schedule == {
            "id": reply.response_id,
            "dag": as_sent(functions, links, name),
            "target_function": function,
            "consistency": messages.MULTI,
            "triggers": triggers[function],
            "locations": locations,
            "arguments": {f: {"values": arguments.get(f, [])} for f in schedule.arguments},
            "response_address": "tcp://127.0.6.10:9000",
            "output_key": "",
            "client_id": "client 1",
            "start_time": schedule.start_time,
            "continuation": decode(messages.CONTINUATION, b""),
        }
        assert set(arguments) <= set(schedule.arguments)


def test_an_executor_can_ask_for_the_arguments_of_any_function(stage: Stage) -> None:
    # Legacy executors read schedule.arguments[target]: an absent entry reads as an empty one.
    stage.executors(1)
    function = stage.function()
    name = stage.create_dag([function])
    reply = stage.client.call_dag(name)
    _, schedule = stage.receiver("schedule", id=reply.response_id)
    assert schedule.arguments in ({}, {function: {"values": []}})


def test_sources_are_triggered_and_nobody_else(stage: Stage) -> None:
    executors = stage.executors(3)
    left, right, sink = (stage.function(word) for word in ("left", "right", "sink"))
    name = stage.create_dag([left, sink, right], [(left, sink), (right, sink)])
    call_id = stage.client.call_dag(name).response_id
    for source in (left, right):
        executor, trigger = stage.receiver("trigger", target_function=source)
        assert trigger == decode(messages.DAG_TRIGGER, b"") | {
            "id": call_id,
            "target_function": source,
            "source": "BEGIN",
        }
        _, schedule = stage.receiver("schedule", target_function=sink)
        assert schedule.locations[source] == executor.location
    stage.settle()
    assert sum(len(executor.received("trigger")) for executor in executors) == 2


def test_an_output_key_is_the_reply_and_travels_along(stage: Stage) -> None:
    stage.executors(1)
    name = stage.create_dag([stage.function()])
    reply = stage.client.call_dag(name, output_key="where it goes")
    assert reply.response_id == "where it goes"
    _, schedule = stage.receiver("schedule", output_key="where it goes")
    uuid.UUID(schedule.id)


def test_calls_have_ids_of_their_own(stage: Stage) -> None:
    stage.executors(1)
    name = stage.create_dag([stage.function()])
    ids = {stage.client.call_dag(name).response_id for _ in range(20)}
    assert len(ids) == 20


def test_the_continuation_travels_along(stage: Stage) -> None:
    [executor] = stage.executors(1)
    name = stage.create_dag([stage.function()])
    following = {"name": "next", "call": {"name": "next", "function_args": {"n": {"values": [ONE]}}}}
    stage.client.call_dag(name, continuation=following)
    [schedule] = executor.wait_for("schedule")
    sent = encode(messages.CONTINUATION, following)
    assert schedule.continuation == decode(messages.CONTINUATION, sent)


def test_a_continuation_calls_the_next_dag_with_the_result(stage: Stage) -> None:
    stage.executors(2)
    left, right, sink = (stage.function(word) for word in ("left", "right", "sink"))
    name = stage.create_dag([left, right, sink], [(left, sink), (right, sink)])
    call = {
        "name": "is replaced",
        "function_args": {left: {"values": [ONE]}},
        "response_address": "tcp://127.0.6.10:9000",
        "output_key": "final",
        "client_id": "client 2",
    }
    result = encode(messages.VALUE, WORD)
    continuation = {"name": name, "id": "the first call", "result": result, "call": call}
    stage.pusher.push(
        ports.tcp(stage.scheduler_ip, ports.CONTINUATION), encode(messages.CONTINUATION, continuation)
    )
    for function in (left, right, sink):
        _, schedule = stage.receiver("schedule", target_function=function)
        assert schedule.id == "the first call"
        assert schedule.arguments[left]["values"] == [ONE, WORD]
        assert schedule.arguments[right]["values"] == [WORD]
        assert not schedule.arguments.get(sink, {"values": []})["values"]
        assert schedule.response_address == "tcp://127.0.6.10:9000"
        assert (schedule.output_key, schedule.client_id) == ("final", "client 2")
    for source in (left, right):
        stage.receiver("trigger", id="the first call", target_function=source)


def continue_with(stage: Stage, name: str, call_id: str, **call: Any) -> None:
    """Push a continuation, as a sink executor does."""
    continuation = {"name": name, "id": call_id, "result": encode(messages.VALUE, ONE), "call": call}
    stage.pusher.push(
        ports.tcp(stage.scheduler_ip, ports.CONTINUATION), encode(messages.CONTINUATION, continuation)
    )


def assert_is_error(value: Record, name: str, error: int = messages.NO_SUCH_DAG) -> None:
    """The value is the legacy error value: what was wrong in words, and a serialized response."""
    assert value.type == messages.DEFAULT
    text, response = pickle.loads(value.body)
    assert text.startswith("ERROR")
    assert name in text
    assert response == encode(messages.GENERIC_RESPONSE, {"error": error})


def test_a_continuation_for_an_unknown_dag_answers_an_error_value(
    stage: Stage, sink: PlayedSink, local: Scheduler
) -> None:
    name = stage.name("unknown")
    dropped = 0 if not local.ray_address else told_of(local)["counts"].get("dropped_call", 0)
    # Whoever is named last waits for the result: this address, and not the key.
    continue_with(stage, name, "the first call", response_address=sink.address, output_key=name + "key")
    [value] = sink.wait_for()
    assert_is_error(value, name)
    if local.ray_address:
        assert told_of(local)["counts"]["dropped_call"] == dropped + 1


@pytest.mark.parametrize("names_key", [True, False], ids=["output key", "id"])
def test_a_continuation_for_an_unknown_dag_stores_an_error_value(
    stage: Stage, anna: AnnaClient, names_key: bool
) -> None:
    name, key, call_id = (stage.name(word) for word in ("unknown", "key", "call"))
    continue_with(stage, name, call_id, **({"output_key": key} if names_key else {}))
    stored = anna.wait_for_lww(key if names_key else call_id)
    assert_is_error(decode(messages.VALUE, stored), name)


def test_the_error_value_of_a_causal_continuation_is_its_client_s_causal_write(
    stage: Stage, anna: AnnaClient
) -> None:
    name, key = stage.name("unknown"), stage.name("key")
    continue_with(
        stage, name, "the first call", output_key=key, consistency=messages.MULTI, client_id="client 3"
    )
    until(lambda: anna.get(key).error == messages.NO_ERROR, f"{key} did not appear")
    stored = anna.get(key)
    assert stored.lattice_type == messages.MULTI_CAUSAL
    lattice = decode(messages.MULTI_KEY_CAUSAL_VALUE, stored.payload)
    assert (lattice.vector_clock, lattice.dependencies) == ({"client 3": 1}, [])
    [value] = lattice["values"]
    assert_is_error(decode(messages.VALUE, value), name)


def test_a_continuation_that_finds_no_room_answers_an_error_value(stage: Stage, sink: PlayedSink) -> None:
    [executor] = stage.executors(1)
    name = stage.create_dag([stage.function()])
    executor.report(running=False)
    stage.settle()
    continue_with(stage, name, "the first call", response_address=sink.address)
    [value] = sink.wait_for()
    assert_is_error(value, name, messages.NO_RESOURCES)


def test_an_unknown_dag_is_named_so(stage: Stage) -> None:
    reply = stage.client.call_dag(stage.name("unknown"))
    assert (reply.success, reply.error) == (False, messages.NO_SUCH_DAG)


# --- one-shot calls ---


def test_a_call_is_forwarded_as_it_came(stage: Stage) -> None:
    [executor] = stage.executors(1)
    call = {
        "name": stage.function(),
        "request_id": 7,
        "arguments": {"values": [ONE, WORD]},
        "response_key": "result",
        "consistency": messages.SINGLE,
    }
    sent = encode(messages.FUNCTION_CALL, call)
    reply = decode(messages.GENERIC_RESPONSE, stage.client.request(ports.FUNCTION_CALL, sent))
    assert reply == {"success": True, "response_id": "result", "error": messages.NO_CLOUDBURST_ERROR}
    assert executor.mailbox.wait_for("call") == [sent]


def test_a_call_without_a_response_key_gets_one(stage: Stage) -> None:
    [executor] = stage.executors(1)
    function = stage.function()
    reply = stage.client.call(function, [ONE])
    uuid.UUID(reply.response_id)
    sent = {"name": function, "arguments": {"values": [ONE]}, "response_key": reply.response_id}
    assert executor.mailbox.wait_for("call") == [encode(messages.FUNCTION_CALL, sent)]


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arguments_reach_the_executor_untouched(stage: Stage, argument: str) -> None:
    # Among them one that would end the process that unpickles it.
    [executor] = stage.executors(1)
    function = stage.function()
    value = {"body": ARGUMENTS[argument], "type": messages.DEFAULT}
    assert stage.client.call(function, [value]).success
    assert executor.wait_for("call")[0].arguments["values"] == [value]
    name = stage.create_dag([function])
    assert stage.client.call_dag(name, {function: [value]}).success
    assert executor.wait_for("schedule")[0].arguments[function]["values"] == [value]


def test_without_executors_a_call_finds_no_resources(stage: Stage) -> None:
    reply = stage.client.call(stage.function())
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)


def test_a_call_takes_the_executor_until_its_next_status_in_cluster_mode(cluster_stage: Stage) -> None:
    [executor] = cluster_stage.executors(1, reports_calls=False)
    function = cluster_stage.function()
    assert cluster_stage.client.call(function).success
    reply = cluster_stage.client.call(function)
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    executor.report()
    until(lambda: cluster_stage.client.call(function).success, "the executor did not come free")


def test_a_call_does_not_take_the_executor_in_local_mode(stage: Stage) -> None:
    [executor] = stage.executors(1, reports_calls=False)
    function = stage.function()
    assert all(stage.client.call(function).success for _ in range(5))
    executor.wait_for("call", 5)


def test_an_executor_that_holds_a_function_gets_no_calls_in_cluster_mode(cluster_stage: Stage) -> None:
    cluster_stage.executors(1)
    function = cluster_stage.function()
    cluster_stage.create_dag([function])
    reply = cluster_stage.client.call(function)
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)


# --- the storage tier's calls ---


def test_the_storage_tier_says_where_its_data_lies(stage: Stage) -> None:
    executors = stage.executors(3)
    function, tier = stage.function(), PlayedStorageTier(stage.pusher)
    for executor in executors * 2:
        key = stage.name("result")
        tier.call(stage.scheduler_ip, function, [executor.ip], [ONE], response_key=key)
        receiver, call = stage.receiver("call", response_key=key)
        assert receiver is executor
        assert (call.locations, call.source_hint) == ([executor.ip], messages.STORAGE)
        assert call.arguments["values"] == [ONE]


def test_the_storage_tier_names_no_executor_that_is_known(stage: Stage) -> None:
    [executor] = stage.executors(1)
    PlayedStorageTier(stage.pusher).call(
        stage.scheduler_ip, stage.function(), ["10.9.9.9"], response_key="any"
    )
    assert executor.wait_for("call")[0].response_key == "any"


def test_a_queued_call_that_nobody_can_take_stores_an_error_value(stage: Stage, anna: AnnaClient) -> None:
    key = stage.name("result")
    PlayedStorageTier(stage.pusher).call(stage.scheduler_ip, stage.function(), [], response_key=key)
    value = decode(messages.VALUE, anna.wait_for_lww(key))
    text, response = pickle.loads(value.body)
    assert text.startswith("ERROR")
    assert decode(messages.GENERIC_RESPONSE, response).error == messages.EXECUTION_ERROR


# --- where references lie ---


def test_calls_follow_their_references(stage: Stage, anna: AnnaClient) -> None:
    far, near = stage.executors(2)
    function = stage.function()
    # What somebody else has spoilt stands in nobody's way.
    nonsense = encode(messages.SET_VALUE, {"values": [b"no set of strings"]})
    key = f"ANNA_METADATA|cache_ip|{far.ip}"
    assert anna.put(key, messages.SET, nonsense).error == messages.NO_ERROR
    assert caches(anna, near, "some-key").error == messages.NO_ERROR
    reference = {"body": ARGUMENTS["reference_protocol_4"], "type": messages.DEFAULT}

    def goes_near() -> bool:
        key = stage.client.call(function, [reference]).response_id
        return stage.receiver("call", response_key=key)[0] is near

    # So many that chance, asked again and again, does not bring all of them there.
    until(lambda: all(goes_near() for _ in range(40)), "the calls did not follow their reference")


def caches(anna: AnnaClient, executor: PlayedExecutor, *keys: str) -> Record:
    """Say that an executor's node caches these keys, as its cache would."""
    names = encode(messages.STRING_SET, {"keys": keys})
    value = encode(messages.LWW_VALUE, {"timestamp": int(time.time() * 10), "value": names})
    return anna.put(f"ANNA_METADATA|cache_ip|{executor.ip}", messages.LWW, value)


# --- contents that make no sense ---


def test_a_continuation_with_a_result_that_is_no_value_is_dropped(stage: Stage) -> None:
    [executor] = stage.executors(1)
    name = stage.create_dag([stage.function()])
    assert stage.client.call_dag(name).success
    broken = {"name": name, "id": "broken", "result": b"\xff\xff", "call": {"name": name}}
    address = ports.tcp(stage.scheduler_ip, ports.CONTINUATION)
    stage.pusher.push(address, encode(messages.CONTINUATION, broken))
    whole = {"name": name, "id": "whole", "result": encode(messages.VALUE, ONE), "call": {"name": name}}
    stage.pusher.push(address, encode(messages.CONTINUATION, whole))
    executor.wait_for("schedule", where=lambda schedule: schedule.id == "whole")
    assert "broken" not in [schedule.id for schedule in executor.received("schedule")]
    assert stage.client.call_dag(name).success


@pytest.mark.parametrize(
    "status",
    [
        {"ip": "no address", "tid": 0, "running": True},
        {"ip": "", "tid": 0, "running": True},
        {"ip": "127.0.6.19", "tid": 2**32 - 1, "running": True},
        {"ip": "127.0.6.19", "tid": 1, "running": True, "utilization": float("nan")},
        {"ip": "127.0.6.19", "tid": 2, "running": True, "functions": ["", "x" * 10_000]},
    ],
    ids=["no address", "empty", "thread", "utilization", "functions"],
)
def test_a_status_that_makes_no_sense_stops_nobody(stage: Stage, status: dict[str, Any]) -> None:
    [executor] = stage.executors(1)
    address = ports.tcp(stage.scheduler_ip, ports.STATUS)
    stage.pusher.push(address, encode(messages.THREAD_STATUS, status))
    function = stage.function()
    for _ in range(5):
        stage.client.call(function)
    stage.pusher.push(address, encode(messages.THREAD_STATUS, status | {"running": False}))
    stage.settle()
    reply = stage.client.call(function, response_key="after it")
    assert reply.success
    executor.wait_for("call", where=lambda call: call.response_key == "after it")
