"""What a group's settings change: replicas, causal consistency, a management node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.client import Client, Future
from ray_sched.config import Config
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import MultiCausal, SingleCausal
from tests.system.conftest import STOP_S, eventually
from tests.wire.players import PlayedManagement

pytestmark = pytest.mark.cluster

HOST, MANAGEMENT = "127.0.33.1", "127.0.33.9"
WAIT_S = 15.0
SETTINGS = Config(host=HOST, mgmt=MANAGEMENT).replace(
    **{
        "executor.count": 2,
        "scheduler.num_replicas": 2,
        "kvs.consistency": "causal",
        "policy.max_recent_calls": 0,
        "background_nice": 7,
        "stats.period_s": 0.3,
        "stats.flush_s": 0.1,
        "executor.status_period_s": 0.5,
    }
)


@pytest.fixture(scope="module")
def management() -> Iterator[PlayedManagement]:
    management = PlayedManagement(MANAGEMENT, [HOST])
    yield management
    management.close()


@pytest.fixture(scope="module")
def set_client(cluster: LocalCluster, management: PlayedManagement) -> Iterator[Client]:
    group = Group.start(SETTINGS)
    with ray_sched.connect(HOST) as client:
        yield client
    group.stop(STOP_S)


def test_a_dag_has_as_many_replicas_as_is_set(set_client: Client) -> None:
    set_client.register(lambda _: 1, "set_one")
    set_client.register_dag("set_replicas", ["set_one"], wait_s=WAIT_S)
    policy: Any = names.find(HOST, names.POLICY)
    executors = ray.get(policy.status.remote(), timeout=WAIT_S)["executors"]
    assert [e["pinned_for"] for e in executors] == [["set_replicas/set_one"]] * 2
    set_client.delete_dag("set_replicas")


def test_actors_that_no_call_waits_for_give_way_with_all_of_their_threads(set_client: Client) -> None:
    def priorities(role: str) -> set[int]:
        pid = ray.get(names.find(HOST, role).status.remote(), timeout=WAIT_S)["pid"]
        found = set()
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                found.add(os.getpriority(os.PRIO_PROCESS, thread))
        return found

    own = os.getpriority(os.PRIO_PROCESS, 0)
    for role in (names.POLICY, names.STATS, names.GOSSIP):
        assert priorities(role) == {min(own + 7, 19)}, role
    for role in (names.INGRESS, names.SCHEDULER, names.KVS):
        assert priorities(role) == {own}, role


def test_functions_and_results_are_causal(set_client: Client) -> None:
    set_client.register(lambda _, x: x + 1, "set_incr")
    with KvsClient(HOST, HOST) as kvs:
        stored = kvs.get("funcs/set_incr")
        assert isinstance(stored, SingleCausal)
        assert stored.vector_clock == {"base": 1}
        incr = set_client.function("set_incr", consistency="single")
        futures: list[Future] = []

        def is_placed() -> bool:
            try:
                futures.append(incr.call(41, response_key="set_result"))
            except ray_sched.NoResourcesError:  # an executor that was unpinned has yet to say that it is free
                return False
            return True

        eventually(is_placed, "an executor comes free")
        assert futures[0].get(timeout_s=WAIT_S) == 42
        assert isinstance(kvs.get("set_result"), MultiCausal)
        set_client.register_dag("set_causal", ["set_incr"], wait_s=WAIT_S)
        future = set_client.call_dag(
            "set_causal",
            {"set_incr": [ray_sched.CloudburstReference("set_result", True)]},
            consistency="multi",
            client_id="me",
            output_key="set_out",
        )
        assert future.get(timeout_s=WAIT_S) == 43
        result = kvs.get("set_out")
        assert isinstance(result, MultiCausal)
        assert result == MultiCausal({"me": 1}, {"set_result": {"base": 1}}, result.values)
    set_client.delete_dag("set_causal")


def test_calls_through_the_handle_are_in_the_statistics(
    set_client: Client, management: PlayedManagement
) -> None:
    scheduler = ray_sched.get_scheduler(HOST)
    set_client.register(lambda _: 1, "set_counted")
    set_client.register_dag("set_handle", ["set_counted"], wait_s=WAIT_S)
    assert ray.get(scheduler.call_dag.remote("set_handle"), timeout=WAIT_S) == 1
    # The executors' reports have run times, and no count of a DAG's calls.
    management.wait_for_statistics(
        where=lambda report: any(dag.name == "set_handle" and dag.call_count == 1 for dag in report.dags)
    )
    set_client.delete_dag("set_handle")
