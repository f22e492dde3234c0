"""Two scheduler groups in one Ray cluster, behind the same executors and the same key-value store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ray_sched
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.client import Client
from ray_sched.config import Config
from tests.system.conftest import STOP_S, eventually

pytestmark = pytest.mark.cluster

FIRST, SECOND = "127.0.8.31", "127.0.8.32"
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
