"""The set of reservations is the set of pins, whatever happens, on a real cluster; also of two groups.

The second group is on the other node, and uses the first one's executors.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import ray
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from ray.util import placement_group

import ray_sched
from ray_sched.actors import names, reservations
from ray_sched.actors.group import Group
from ray_sched.actors.reservations import address_in
from ray_sched.client import Client
from ray_sched.config import Config
from tests.nodes.clusters import UNCLOSED, Nodes
from tests.nodes.waiting import (
    WAIT_S,
    all_reserved,
    answer,
    eventually,
    executors,
    free,
    pins,
    policy_status,
    reserved,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240), UNCLOSED]

HOST, NODE = "127.0.15.1", "127.0.15.2"
CONFIG = Config(host=HOST).replace(
    **{
        "executor.count": 1,
        "executor.functions_per_executor": 1,
        "executor.scheduler_ips": (HOST, NODE),
        "executor.status_period_s": 0.5,
        "executor.nodes_period_s": 0.3,
        "scheduler.reservation_check_s": 0.5,
        "scheduler.reservation_timeout_s": 2.0,
        "scheduler.demand_s": 0.0,
        "stats.policy_period_s": 1.0,
        "gossip.period_s": 0.3,
        "policy.max_recent_calls": 0,
    }
)
STOP_S = 30.0


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """One executor beside the group, two on another node."""
    with pytest.MonkeyPatch.context() as patch, Nodes(patch, executor=1, pin=1) as nodes:
        nodes.add(NODE, 2)
        started = Group.start(CONFIG)
        eventually(lambda: len(executors(HOST)) == 3, "the other node's executors")
        yield started
        started.stop(STOP_S)
        assert all_reserved() == set()
        assert names.roles_by_group() == {}


@pytest.fixture(scope="module")
def client(group: Group) -> Iterator[Client]:
    with ray_sched.connect(HOST) as client:
        for name in ("f", "g", "h"):
            client.register(lambda _, x=0: x + 1, name)

        def stillborn(*_: Any) -> None:
            raise AssertionError

        client.register((type("Stillborn", (), {"__init__": stillborn, "run": stillborn}), ()), "bad")
        yield client


def chain(*functions: str) -> tuple[list[str], list[tuple[str, str]]]:
    return list(functions), list(itertools.pairwise(functions))


def agree() -> bool:
    made = pins(HOST)
    return made == reserved() == all_reserved() and not policy_status(HOST).get("missing_pins", True)


def test_pins_are_ray_placement_groups_on_their_executors_nodes(client: Client) -> None:
    client.register_dag("d", *chain("f", "g", "h"))
    assert agree()
    where = {name.rpartition("/")[2] for name in reserved()}
    assert where == {f"{HOST}:0", f"{NODE}:0", f"{NODE}:1"}
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}
    on = {
        name.rpartition("/")[2].partition(":")[0]: info["bundles_to_node_id"][0]
        for name, info in reservations.listed(reservations.PREFIX).items()
    }
    assert on[NODE] == nodes[NODE] != on[HOST]
    eventually(lambda: not {"pin", "executor"} & set(ray.available_resources()), "Ray counts all as taken")
    client.delete_dag("d")
    eventually(lambda: all_reserved() == set(), "a deleted DAG's reservations go")
    eventually(lambda: ray.available_resources().get("pin") == 3, "Ray counts them no more")


def test_what_others_do_in_ray_is_repaired_and_reported(client: Client) -> None:
    client.register_dag("d", ["f"])
    (name,) = reserved()
    before = policy_status(HOST)["reservations"]["differences"]
    reservations.remove_by_name(name)
    placement_group([{"pin": 1}], name=f"pin/old/f/{NODE}:1", lifetime="detached")
    eventually(
        lambda: reserved() == all_reserved() == {name}, "the lost one is made again, the stray one goes"
    )
    eventually(
        lambda: policy_status(HOST)["reservations"]["differences"] >= before + 2,
        "the differences are counted",
    )
    client.delete_dag("d")


def test_a_dag_that_rays_room_is_gone_for_is_refused_and_leaves_nothing(client: Client) -> None:
    taken = placement_group([{"pin": 1}] * 3, name="somebody")
    assert taken.wait(30)
    try:
        with pytest.raises(ray_sched.NoResourcesError):
            client.register_dag("d", ["f"])
        eventually(lambda: all_reserved() == set() == pins(HOST), "nothing is left")
    finally:
        ray.util.remove_placement_group(taken)


@pytest.fixture(scope="class")
def other(client: Client) -> Iterator[Client]:
    """A client of the second group."""
    second = Group.start(CONFIG.replace(host=NODE, **{"executor.count": 0, "kvs.host": HOST}))
    try:
        eventually(lambda: len(executors(NODE)) == 3, "the second group knows the first one's executors")
        with ray_sched.connect(NODE) as other:
            yield other
    finally:
        second.stop(STOP_S)
    assert all_reserved() == set() == pins(HOST)
    assert len(executors(HOST)) == 3


class TestTwoGroups:
    def test_both_reserve_on_the_same_executors_and_leave_each_others_alone(
        self, client: Client, other: Client
    ) -> None:
        client.register_dag("d", ["f"])
        other.register_dag("e", *chain("g", "h"))
        both = pins(HOST) | pins(NODE)
        assert len(both) == 3 and reserved() == both
        seen = {group: policy_status(group)["reservations"]["checks"] for group in (HOST, NODE)}
        eventually(
            lambda: all(policy_status(g)["reservations"]["checks"] > n + 3 for g, n in seen.items()),
            "both look at Ray's list again",
        )
        assert all_reserved() == both
        other.delete_dag("e")
        eventually(lambda: all_reserved() == pins(HOST), "the second group's go")
        client.delete_dag("d")
        eventually(lambda: all_reserved() == set(), "the first group's go")

    # The second one's are pinned where the first group has just unpinned its own of the same functions.
    @pytest.mark.parametrize(("creator", "dag"), [(HOST, "firsts"), (NODE, "seconds")])
    def test_what_one_creates_the_other_calls_across_the_nodes_until_it_is_deleted(
        self, client: Client, other: Client, creator: str, dag: str
    ) -> None:
        clients = {HOST: client, NODE: other}
        learner = NODE if creator == HOST else HOST
        eventually(
            lambda: all(free(group) == 3 for group in clients), "both know that all executors are free"
        )
        clients[creator].register_dag(dag, *chain(*"fgh"))
        assert pins(creator) == reserved() and pins(learner) == set()
        assert {address_in(name) for name in reserved()} == {(HOST, 0), (NODE, 0), (NODE, 1)}
        eventually(lambda: exists(clients[learner], dag), "it is learned")
        eventually(lambda: answer(clients[learner], dag, {"f": [1]}) == 4, "and called")
        by_name = ray_sched.get_scheduler(learner)
        assert ray.get(by_name.call_dag.remote(dag, {"f": [1]}), timeout=WAIT_S) == 4
        client.delete_dag(dag)  # by its creator, and the second one by the group that learned it
        eventually(lambda: not any(exists(each, dag) for each in clients.values()), "both know it no more")
        eventually(lambda: all_reserved() == set() == pins(creator), "nor Ray its pins")

    def test_they_are_on_two_nodes_and_gossip_by_handle(self, other: Client) -> None:
        at = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}
        assert node_of(HOST) == at["127.0.0.1"] and node_of(NODE) == at[NODE]
        # By wire are told those with an address in this list.
        assert gossip_status(HOST)["peers"] == [f"group {NODE}"]
        assert gossip_status(NODE)["peers"] == [f"group {HOST}"]


def exists(client: Client, dag: str) -> bool:
    try:
        answer(client, dag, {})
    except ray_sched.NoSuchDagError:
        return False
    return True


def gossip_status(group: str) -> Any:
    return ray.get(names.find(group, names.GOSSIP).status.remote(), timeout=WAIT_S)


def node_of(group: str) -> Any:
    """The id of the node that a group's Gossip is on."""
    gossip = names.find(group, names.GOSSIP)
    asked = gossip.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    return ray.get(asked, timeout=WAIT_S)


class Anything(RuleBasedStateMachine):
    """Create, delete, failed creations, deaths of the policy and of executors, in any order."""

    client: ClassVar[Client]
    dags = st.sampled_from(["one", "two"])

    @rule(dag=dags, functions=st.sampled_from([["f"], ["f", "g"], ["f", "g", "h"], ["f", "bad"]]))
    def create(self, dag: str, functions: list[str]) -> None:
        try:
            self.client.register_dag(dag, *chain(*functions))
        except (ray_sched.NoResourcesError, ray_sched.DagExistsError, ray_sched.TimedOutError):
            return

    @rule(dag=dags)
    def delete(self, dag: str) -> None:
        self.is_gone(dag)

    @rule()
    def kill_policy(self) -> None:
        if pid := policy_status(HOST).get("pid"):
            os.kill(pid, signal.SIGKILL)

    @rule(which=st.integers(0, 2))
    def kill_executor(self, which: int) -> None:
        found = sorted(address for address, group in names.executors().items() if group == HOST)
        executor = names.find(HOST, names.executor_role(*found[which % len(found)]))
        ray.kill(executor, no_restart=False)

    def is_gone(self, dag: str) -> bool:
        try:
            self.client.delete_dag(dag)
        except ray_sched.NoSuchDagError:
            return True
        except (ray_sched.NoResourcesError, ray_sched.TimedOutError):
            return False
        return True

    def teardown(self) -> None:
        eventually(agree, "Ray's list and the pins agree")
        for dag in ("one", "two"):
            eventually(lambda dag=dag: self.is_gone(dag), "the DAG is deleted")  # type: ignore[misc]
        eventually(lambda: all_reserved() == set() == pins(HOST), "nothing is left")


def test_whatever_happens_the_reservations_are_the_pins(client: Client) -> None:
    Anything.client = client
    run_state_machine_as_test(
        Anything,
        settings=settings(
            max_examples=5,
            stateful_step_count=6,
            deadline=None,
            # To find a smaller example of a failure would take hours.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
