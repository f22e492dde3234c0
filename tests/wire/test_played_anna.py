"""The key-value store is an Anna: what a scheduler and its executors ask of one that is played."""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Iterator

import cloudpickle
import pytest

from tests.wire.conftest import Scheduler, told_of
from tests.wire.players import (
    LegacyClient,
    PlayedAnna,
    PlayedExecutor,
    Pusher,
    Record,
    dag,
    decode,
    encode,
    messages,
    until,
)

pytestmark = pytest.mark.cluster


@pytest.fixture
def anna(with_anna: Scheduler) -> PlayedAnna:
    assert with_anna.anna is not None
    return with_anna.anna


@pytest.fixture
def client(with_anna: Scheduler) -> Iterator[LegacyClient]:
    with LegacyClient(with_anna.ip) as client:
        yield client


@pytest.fixture
def word() -> str:
    """A prefix for the names of one test."""
    return f"t{uuid.uuid4().hex[:8]}_"


def stored_lww(anna: PlayedAnna, key: str) -> Record:
    until(lambda: key in anna.stored, f"nobody stored {key}")
    lattice_type, payload = anna.stored[key]
    assert lattice_type == messages.LWW
    return decode(messages.LWW_VALUE, payload)


def indexed(scheduler: Scheduler, anna: PlayedAnna) -> list[str]:
    """The DAGs that a restart would read, each with its replicas; legacy schedulers keep no such index."""
    found: list[str] = decode(messages.STRING_SET, stored_lww(anna, f"ray_sched/dags/{scheduler.ip}").value)[
        "keys"
    ]
    return found


def test_clients_are_sent_to_the_same_anna(
    with_anna: Scheduler, client: LegacyClient, anna: PlayedAnna
) -> None:
    address = anna.mailbox.address["storage"]
    assert client.connect() == address.removeprefix("tcp://").partition(":")[0]


def test_a_function_is_stored_as_it_came_and_indexed(
    client: LegacyClient, anna: PlayedAnna, word: str
) -> None:
    body = cloudpickle.dumps(lambda cloudburst: 1)
    assert client.create_function(word, body).success
    stored = stored_lww(anna, f"funcs/{word}")
    assert stored.value == body
    # Tenths of a second, as legacy writers count: a finer scale would outrank them for ever.
    assert abs(stored.timestamp - time.time() * 10) < 600
    lattice_type, payload = anna.stored["funcs/index-allfuncs"]
    assert lattice_type == messages.SET
    assert f"funcs/{word}".encode() in decode(messages.SET_VALUE, payload)["values"]
    assert {entry.lattice_type for entry in anna.puts("funcs/index-allfuncs")} == {messages.SET}


def test_the_index_of_functions_is_read_where_others_write_it(
    client: LegacyClient, anna: PlayedAnna, word: str
) -> None:
    _, known = anna.stored.get("funcs/index-allfuncs", (messages.SET, b""))
    values = [*decode(messages.SET_VALUE, known)["values"], f"funcs/{word}".encode()]
    anna.stored["funcs/index-allfuncs"] = (messages.SET, encode(messages.SET_VALUE, {"values": values}))
    assert client.list(word) == [word]


def test_a_dag_is_stored_and_its_result_as_well(
    with_anna: Scheduler, client: LegacyClient, anna: PlayedAnna, word: str
) -> None:
    function, name = word + "incr", word + "dag"
    assert client.create_function(function, cloudpickle.dumps(lambda cloudburst, x: x + 1)).success
    assert client.create_dag(name, [function]).success
    assert decode(messages.DAG, stored_lww(anna, name).value) == decode(
        messages.DAG, encode(messages.DAG, dag(name, [function]))
    )
    if with_anna.ray_address:
        assert f"1 {name}" in indexed(with_anna, anna)
    argument = {"body": cloudpickle.dumps(41), "type": messages.DEFAULT}
    assert client.call_dag(name, {function: [argument]}, output_key=word + "out").success
    value = decode(messages.VALUE, stored_lww(anna, word + "out").value)
    assert (value.type, pickle.loads(value.body)) == (messages.DEFAULT, 42)
    assert client.delete_dag(name).success
    if with_anna.ray_address:  # legacy schedulers leave it there
        assert stored_lww(anna, name).value == b"", "whoever looks the DAG up still finds it"
        assert f"1 {name}" not in indexed(with_anna, anna)


def test_the_pins_of_a_dag_that_cannot_be_stored_are_given_back(
    with_anna: Scheduler,
    client: LegacyClient,
    anna: PlayedAnna,
    pusher: Pusher,
    node_addresses: Iterator[str],
    word: str,
) -> None:
    plain, gpu, name = word + "plain", word + "gpu", word + "dag"
    functions, links = [plain, {"name": gpu, "gpu": True}], [(plain, gpu)]
    for function in (plain, gpu):
        assert client.create_function(function, cloudpickle.dumps(lambda cloudburst: 1)).success
    # The group's own executor has no GPU: the one takes what the other cannot.
    with PlayedExecutor(
        next(node_addresses), 0, with_anna.ip, pusher, layout=with_anna.layout, gpu=True
    ) as played:
        played.report()

        def is_refused_when_all_is_pinned(times: int) -> bool:
            # Until the played one's status is taken in, or it is free again, for want of an executor.
            reply = client.create_dag(name, functions, links)
            assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
            return len(played.received("pin")) == times

        index = f"ray_sched/dags/{with_anna.ip}"  # no legacy scheduler has one
        for times, key in enumerate([name, index] if with_anna.ray_address else [name], start=1):
            anna.failing = {key: messages.TIMEOUT}
            until(lambda times=times: is_refused_when_all_is_pinned(times), "it was not pinned")  # type: ignore[misc]
            assert {unpin.name for unpin in played.wait_for("unpin", times)} == {gpu}
            assert client.call_dag(name).error == messages.NO_SUCH_DAG
        if with_anna.ray_address:

            def nothing_is_held() -> bool:
                told = told_of(with_anna)
                held = [function for executor in told["executors"] for function in executor["functions"]]
                return not held and not told["reservations"]["held"]

            until(nothing_is_held, "a pin or its reservation stayed", 30.0)

        anna.failing.clear()
        until(lambda: client.create_dag(name, functions, links).success, "it was not created afterwards")
        assert client.call_dag(name).success
        assert played.wait_for("schedule")[0].target_function == gpu
        assert client.delete_dag(name).success
        played.wait_for("unpin", len(played.received("pin")))
        played.report(running=False)


def test_an_answer_that_invalidates_has_the_address_looked_up_again(
    client: LegacyClient, anna: PlayedAnna, word: str
) -> None:
    # Nobody but the scheduler has to do with a function that is never called.
    key = f"funcs/{word}"

    def register_again() -> int:
        assert client.create_function(word, b"never run").success
        return anna.lookups(key)

    assert [register_again(), register_again()] == [1, 1]
    anna.moved.add(key)
    assert register_again() == 1
    anna.moved.clear()
    assert [register_again(), register_again()] == [2, 2]
    assert len(anna.puts(key)) == 5


def test_every_thread_of_the_routing_tier_is_asked(client: LegacyClient, anna: PlayedAnna, word: str) -> None:
    def asked_all() -> bool:
        assert client.create_function(f"{word}{uuid.uuid4().hex}", b"never run").success
        return all(anna.mailbox.all(thread) for thread in anna.routing)

    until(asked_all, "not all routing threads were asked")
