"""Two scheduler groups in one Ray cluster, behind the same executors and the same key-value store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.client import Client
from ray_sched.config import Config
from tests.system.conftest import STOP_S, eventually

pytestmark = pytest.mark.cluster

FIRST, SECOND, STRANGER = "127.0.8.31", "127.0.8.32", "127.0.8.33"
WAIT_S = 10.0
BASE = Config().replace(
    **{"gossip.period_s": 0.3, "policy.max_recent_calls": 0, "executor.status_period_s": 0.5}
)


@pytest.fixture(scope="module")
def clients(cluster: LocalCluster) -> Iterator[tuple[Client, Client]]:
    """The first group has the executors and the store; they report to both."""
    first = Group.start(
        BASE.replace(host=FIRST, **{"executor.count": 2, "executor.scheduler_ips": (FIRST, SECOND)})
    )
    second = Group.start(BASE.replace(host=SECOND, **{"executor.count": 0, "kvs.host": FIRST}))
    with ray_sched.connect(FIRST) as one, ray_sched.connect(SECOND) as two:
        yield one, two
    second.stop(STOP_S)
    first.stop(STOP_S)


def calls(client: Client, dag: str) -> bool:
    """Whether the DAG can be called; another refusal than that it does not exist fails the test."""
    try:
        return bool(client.call_dag(dag, {"two_incr": [1]}, direct_response=True).get(timeout_s=WAIT_S) == 2)
    except (ray_sched.NoSuchDagError, ray_sched.NoResourcesError):
        return False


def exists(client: Client, dag: str) -> bool:
    try:
        client.call_dag(dag, {"two_incr": [1]}, direct_response=True).get(timeout_s=WAIT_S)
    except ray_sched.NoSuchDagError:
        return False
    except ray_sched.NoResourcesError:
        return True
    return True


def test_what_one_group_creates_the_other_calls_and_deletions_reach_it(
    clients: tuple[Client, Client],
) -> None:
    one, two = clients
    one.register(lambda _, x: x + 1, "two_incr")
    assert "two_incr" in two.list()
    one.register_dag("two_dag", ["two_incr"])
    eventually(lambda: calls(two, "two_dag"), "the second group calls the first one's DAG")
    with pytest.raises(ray_sched.DagExistsError):
        two.register_dag("two_dag", ["two_incr"])
    one.delete_dag("two_dag")
    assert not exists(one, "two_dag")
    eventually(lambda: not exists(two, "two_dag"), "the second group forgets the DAG")
    # Neither teaches it to the other again; a new one of that name is learned.
    one.register_dag("two_later", ["two_incr"])
    eventually(lambda: calls(two, "two_later"), "a later DAG is learned")
    assert not exists(two, "two_dag")
    assert not exists(one, "two_dag")
    one.register_dag("two_dag", ["two_incr"])
    eventually(lambda: calls(two, "two_dag"), "the DAG that was created again is learned")
    for dag in ("two_dag", "two_later"):
        one.delete_dag(dag)


def test_both_pin_on_the_same_executors_and_keep_each_others_pins(clients: tuple[Client, Client]) -> None:
    one, two = clients
    one.register(lambda _, x: x + 1, "two_incr")
    one.register_dag("two_ones", ["two_incr"])
    two.register_dag("two_twos", ["two_incr"])
    assert calls(one, "two_ones")
    assert calls(two, "two_twos")
    two.delete_dag("two_twos")
    eventually(lambda: calls(one, "two_ones"), "the first group's DAG is called after the second's deletion")
    one.delete_dag("two_ones")


def test_a_dag_that_was_learned_is_deleted_where_it_was_created(clients: tuple[Client, Client]) -> None:
    one, two = clients
    one.register(lambda _, x: x + 1, "two_incr")
    one.register_dag("two_learned", ["two_incr"])
    eventually(lambda: calls(two, "two_learned"), "the second group learns the DAG")
    two.delete_dag("two_learned")
    assert not exists(two, "two_learned")
    eventually(lambda: not exists(one, "two_learned"), "its creator deletes the DAG")
    one.register_dag("two_learned", ["two_incr"])
    one.delete_dag("two_learned")


def test_a_group_with_a_store_of_its_own_is_no_peer(clients: tuple[Client, Client]) -> None:
    """It may give its functions the same names."""
    one, _ = clients
    one.register(lambda _, x: x + 1, "two_incr")
    one.register_dag("two_same", ["two_incr"])
    stranger = Group.start(BASE.replace(host=STRANGER, **{"executor.count": 1}))
    try:
        with ray_sched.connect(STRANGER) as client:
            client.register(lambda _, x: x + 100, "two_incr")
            client.register_dag("two_same", ["two_incr"])
            told = gossip_status(STRANGER).get("updates_of_other_stores", 0)
            eventually(
                lambda: gossip_status(STRANGER).get("updates_of_other_stores", 0) > told + 2,
                "the groups tell each other what is not for them",
            )
            futures = [
                client.call_dag("two_same", {"two_incr": [1]}, direct_response=True) for _ in range(20)
            ]
            assert {future.get(timeout_s=WAIT_S) for future in futures} == {101}
            assert calls(one, "two_same")
    finally:
        stranger.stop(STOP_S)
        one.delete_dag("two_same")


def gossip_status(group: str) -> Any:
    return ray.get(names.find(group, names.GOSSIP).status.remote(), timeout=WAIT_S)["counts"]
