"""The client over ZeroMQ against a whole group."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import ray_sched
from ray_sched.client import Client

pytestmark = pytest.mark.cluster

WAIT_S = 10.0


@pytest.fixture(scope="module")
def pipeline(client: Client) -> Any:
    client.register(lambda _, x: x + 1, "zmq_incr")
    client.register(lambda _, x: x * x, "zmq_square")
    client.register_dag("zmq_pipeline", ["zmq_incr", "zmq_square"], [("zmq_incr", "zmq_square")])
    yield "zmq_pipeline"
    client.delete_dag("zmq_pipeline")


def test_a_function_is_called(client: Client, pipeline: str) -> None:
    assert client.function("zmq_incr")(41).get(timeout_s=WAIT_S) == 42
    assert {"zmq_incr", "zmq_square"} <= set(client.list("zmq_"))


@pytest.mark.parametrize("direct", [False, True])
def test_a_dag_is_called(client: Client, pipeline: str, direct: bool) -> None:
    futures = [client.call_dag(pipeline, {"zmq_incr": [n]}, direct_response=direct) for n in range(20)]
    assert [future.get(timeout_s=WAIT_S) for future in futures] == [(n + 1) ** 2 for n in range(20)]


def test_many_threads_share_a_client(client: Client, pipeline: str) -> None:
    def call(number: int) -> Any:
        return client.call_dag(pipeline, {"zmq_incr": [number]}, direct_response=True).get(timeout_s=WAIT_S)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, range(80))) == [(n + 1) ** 2 for n in range(80)]


def test_a_result_under_a_key_of_ones_own(client: Client, pipeline: str) -> None:
    future = client.call_dag(pipeline, {"zmq_incr": [2]}, output_key="zmq_output")
    assert future.get(timeout_s=WAIT_S) == 9
    assert client.get("zmq_output") == 9


def test_references_are_resolved(client: Client, pipeline: str) -> None:
    client.put("zmq_key", 6)
    future = client.call_dag(pipeline, {"zmq_incr": [ray_sched.CloudburstReference("zmq_key")]})
    assert future.get(timeout_s=WAIT_S) == 49


def test_the_user_library_comes_first(client: Client) -> None:
    def use(library: Any, key: str) -> Any:
        library.put(key, ["kept"])
        ip, tid = library.getid()
        return library.get(key), ip, type(tid).__name__

    client.register(use, "zmq_use")
    assert client.function("zmq_use")("zmq_kept").get(timeout_s=WAIT_S) == (["kept"], "127.0.8.1", "int")
    assert client.get("zmq_kept") == ["kept"]


def test_what_is_acknowledged_holds_at_once(client: Client) -> None:
    """Create, call, delete, call, again and again: each sees what the one before was told."""
    client.register(lambda _: "ran", "zmq_once")
    for _ in range(10):
        client.register_dag("zmq_short", ["zmq_once"])
        assert client.call_dag("zmq_short", {}, direct_response=True).get(timeout_s=WAIT_S) == "ran"
        client.delete_dag("zmq_short")
        with pytest.raises(ray_sched.NoSuchDagError):
            client.call_dag("zmq_short", {})


def test_two_clients_create_the_same_dag_and_one_of_them_succeeds(client: Client) -> None:
    client.register(lambda _: 1, "zmq_one")
    start = threading.Barrier(4)

    def create(_: int) -> str:
        start.wait(WAIT_S)
        try:
            client.register_dag("zmq_race", ["zmq_one"])
        except ray_sched.DagExistsError:
            return "refused"
        return "created"

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(create, range(4))) == ["created", "refused", "refused", "refused"]
    client.delete_dag("zmq_race")


def test_a_function_registered_again_takes_effect(client: Client) -> None:
    client.register(lambda _: "old", "zmq_changing")
    client.register_dag("zmq_changes", ["zmq_changing"])
    assert client.call_dag("zmq_changes", {}).get(timeout_s=WAIT_S) == "old"
    client.register(lambda _: "new", "zmq_changing")
    client.delete_dag("zmq_changes")
    client.register_dag("zmq_changes", ["zmq_changing"])
    assert client.call_dag("zmq_changes", {}).get(timeout_s=WAIT_S) == "new"
    client.delete_dag("zmq_changes")
