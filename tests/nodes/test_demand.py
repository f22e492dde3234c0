"""A DAG that does not fit makes the cluster grow, and its deletion lets the nodes go again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors.group import Group
from ray_sched.actors.reservations import listed
from ray_sched.config import Config
from tests.nodes.clusters import AutoscaledNodes
from tests.nodes.waiting import answer, eventually, executors, held, policy_status, reserved

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

HOST = "127.0.15.11"
CONFIG = Config(host=HOST).replace(
    **{
        "executor.count": 1,
        "executor.functions_per_executor": 1,
        "executor.status_period_s": 0.5,
        "executor.nodes_period_s": 0.3,
        "executor.idle_timeout_s": 3.0,
        "policy.max_recent_calls": 0,
    }
)
STOP_S = 30.0


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """One executor, on a head without slots; the autoscaler may add two nodes of two."""
    with AutoscaledNodes(executors=2, max_nodes=2, idle_timeout_s=3.0):
        started = Group.start(CONFIG)
        yield started
        started.stop(STOP_S)


def living() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def test_a_node_comes_for_a_dag_and_goes_with_it(group: Group) -> None:
    with ray_sched.connect(HOST) as client:
        for name in ("f", "g", "h"):
            client.register(lambda _, x: x + 1, name)
        chain: dict[str, Any] = {
            "functions": ["f", "g", "h"],
            "connections": [("f", "g"), ("g", "h")],
        }
        # On the wire the answer comes at once, and the demand stays.
        with pytest.raises(ray_sched.NoResourcesError, match="add executors"):
            client.register_dag("big", **chain)
        eventually(lambda: list(listed("demand/")) == [f"demand/{HOST}/big"], "Ray sees the demand")
        assert policy_status(HOST)["demand"] == {"big": {"pin": 3}}
        assert living() == 1
        # Whoever tries again, or waits, gets it.
        client.register_dag("big", **chain, wait_s=90)
        eventually(lambda: answer(client, "big", {"f": [1]}) == 4, "it can be called")
        eventually(lambda: not listed("demand/"), "the demand is met")
        eventually(lambda: living() > 1 and len(executors(HOST)) >= 3, "there are more executors")
        # The head offers no slots: what its executor holds is not Ray's.
        eventually(lambda: len(reserved()) >= 2, "the other pins are reserved")
        client.delete_dag("big")
        eventually(lambda: living() == 1, "empty nodes go", 90, lambda: (held(HOST), reserved()))
        eventually(lambda: executors(HOST) == {(HOST, 0)}, "and their executors with them")

        scheduler = ray_sched.get_scheduler(HOST)
        ray.get(scheduler.register_dag.remote("again", **chain, timeout_s=90), timeout=100)
        eventually(lambda: answer(client, "again", {"f": [1]}) == 4, "it can be called, too")
        client.delete_dag("again")


def test_what_no_node_type_has_is_demanded_all_the_same(group: Group) -> None:
    with ray_sched.connect(HOST) as client:
        client.register(lambda _, x: x + 1, "f")
        with pytest.raises(ray_sched.NoResourcesError, match="GPU"):
            client.register_dag("gpus", [ray_sched.DagFunction("f", gpu=True)])
        assert policy_status(HOST)["demand"]["gpus"] == {"gpu_pin": 1}
