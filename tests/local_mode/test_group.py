"""A whole group in one process, in Ray's local mode; both ways in. On a real cluster: `tests/system`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors import local_mode, names
from ray_sched.actors.group import Group
from ray_sched.client import Client
from tests.local_mode.conftest import BASE, Start
from tests.system.conftest import eventually

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not local_mode.exists(), reason="this version of Ray has no local mode"),
]

WAIT_S = 30.0
NEIGHBOUR = "127.0.16.2"


@pytest.fixture
def scheduler(group: Group) -> Any:
    return ray_sched.get_scheduler(group.name)


@pytest.fixture(scope="module")
def client(group: Group) -> Iterator[Client]:
    with ray_sched.connect(group.name) as client:
        yield client


def status(group: Group, role: str) -> dict[str, Any]:
    return group.status(timeout_s=WAIT_S)[role]


def pins(group: Group) -> list[str]:
    return sorted(pin for e in status(group, "policy")["executors"] for pin in e["pinned_for"])


def test_every_actor_is_in_this_process(group: Group) -> None:
    pids = {answer["pid"] for answer in group.status(timeout_s=WAIT_S).values() if "pid" in answer}
    assert pids == {os.getpid()}


def test_functions_are_called_both_ways(scheduler: Any, client: Client) -> None:
    ray.get(scheduler.register.remote(lambda _, x: x + 1, "incr"), timeout=WAIT_S)
    assert client.function("incr")(41).get(timeout_s=WAIT_S) == 42
    double = client.register(lambda _, x: 2 * x, "double")
    assert double(4).get(timeout_s=WAIT_S) == 8
    assert ray.get(scheduler.call.remote("double", 8), timeout=WAIT_S) == 16
    assert set(ray.get(scheduler.list.remote(""), timeout=WAIT_S)) >= {"incr", "double"}


def test_what_a_function_raises_is_told_both_ways(scheduler: Any, client: Client) -> None:
    broken = client.register(lambda _: 1 // 0, "broken")
    with pytest.raises(ray_sched.ExecutionError, match="division"):
        broken().get(timeout_s=WAIT_S)
    with pytest.raises(ray_sched.ExecutionError, match="division"):
        ray.get(scheduler.call.remote("broken"), timeout=WAIT_S)


def test_a_dag_is_created_called_both_ways_and_deleted(group: Group, scheduler: Any, client: Client) -> None:
    client.register(lambda _, x: x + 1, "incr")
    client.register(lambda _, x: x * x, "square")
    ray.get(
        scheduler.register_dag.remote("pipeline", ["incr", "square"], [("incr", "square")]), timeout=WAIT_S
    )
    assert pins(group) == ["pipeline/incr", "pipeline/square"]
    with pytest.raises(ray_sched.DagExistsError):
        client.register_dag("pipeline", ["incr"])
    assert ray.get(scheduler.call_dag.remote("pipeline", {"incr": [1]}), timeout=WAIT_S) == 4
    assert client.call_dag("pipeline", {"incr": [2]}).get(timeout_s=WAIT_S) == 9
    assert client.call_dag("pipeline", {"incr": [3]}, direct_response=True).get(timeout_s=WAIT_S) == 16

    client.delete_dag("pipeline")
    with pytest.raises(ray_sched.NoSuchDagError):
        client.call_dag("pipeline", {"incr": [1]})
    with pytest.raises(ray_sched.NoSuchDagError):
        ray.get(scheduler.call_dag.remote("pipeline", {"incr": [1]}), timeout=WAIT_S)
    eventually(lambda: pins(group) == [], "the deletion releases the pins")


def test_the_policy_picks_in_turn(client: Client, group: Group) -> None:
    client.register(lambda library: library.getid(), "who")
    ids = {client.function("who")().get(timeout_s=WAIT_S) for _ in range(9)}
    assert len(ids) == 3
    assert status(group, "policy")["policy"] == "round-robin"


def test_calls_are_counted(client: Client, group: Group) -> None:
    client.register(lambda _, x: x + 1, "incr")
    for number in range(5):
        assert client.function("incr")(number).get(timeout_s=WAIT_S) == number + 1

    def as_executed() -> bool:
        told = group.status(timeout_s=WAIT_S)
        executed = [answer["calls"] + answer["dag_runs"] for answer in told.values() if "dag_runs" in answer]
        return bool(sum(executed) >= 5 and told["stats"]["counts"].get("function_calls", 0) == sum(executed))

    eventually(as_executed, "the statistics count what the executors ran")


def test_calls_of_many_clients_at_once_get_their_own_results(group: Group) -> None:
    clients = [ray_sched.connect(group.name) for _ in range(4)]
    try:
        clients[0].register(lambda _, x: x * 10, "tenfold")
        clients[0].register_dag("tens", ["tenfold"])
        futures = [
            (number, client.call_dag("tens", {"tenfold": [number]}, direct_response=True))
            for number in range(50)
            for client in clients
        ]
        assert all(future.get(timeout_s=WAIT_S) == 10 * number for number, future in futures)
        clients[0].delete_dag("tens")
    finally:
        for client in clients:
            client.close()


def test_a_second_group_hears_by_handle_what_the_first_creates_and_deletes(
    start_group: Start, group: Group, client: Client
) -> None:
    start_group(BASE.replace(host=NEIGHBOUR, **{"executor.count": 0, "kvs.host": group.name}))
    client.register(lambda _, x: x + 1, "incr")
    client.register_dag("told", ["incr"])
    with ray_sched.connect(NEIGHBOUR) as neighbour:

        def learned() -> bool:
            try:
                found = neighbour.call_dag("told", {"incr": [1]}, direct_response=True)
                return bool(found.get(timeout_s=WAIT_S) == 2)
            except (ray_sched.NoSuchDagError, ray_sched.NoResourcesError):
                return False

        def forgotten() -> bool:
            try:
                neighbour.call_dag("told", {"incr": [1]}, direct_response=True)
            except ray_sched.NoSuchDagError:
                return True
            except ray_sched.NoResourcesError:
                return False
            return False

        eventually(learned, "the second group learns the DAG")
        client.delete_dag("told")
        eventually(forgotten, "the second group forgets the DAG")
    told = ray.get(names.find(NEIGHBOUR, names.GOSSIP).status.remote(), timeout=WAIT_S)
    assert told["peers"] == [f"group {group.name}"]
    assert told["counts"]["updates_taken"] > 0
