"""What is acknowledged survives the death of any actor, and calls go on afterwards.

Each test ends one actor's process as a crash would, and waits until calls succeed again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.group import Group
from ray_sched.client import Client
from tests.system.conftest import eventually

pytestmark = pytest.mark.cluster

WAIT_S = 15.0


@pytest.fixture
def dag(client: Client) -> Iterator[str]:
    client.register(lambda _, x: x + 1, "die_incr")
    client.register_dag("die_dag", ["die_incr"])
    yield "die_dag"
    client.delete_dag("die_dag")


def crash(group: Group, role: str) -> None:
    """End an actor's process, and wait until another one has taken its place."""
    actor = names.find(group.name, role)
    pid = ray.get(actor.status.remote(), timeout=WAIT_S)["pid"]
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return bool(ray.get(actor.status.remote(), timeout=1.0)["pid"] != pid)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return False

    eventually(is_back, f"a new {role}")


def succeeds(client: Client, dag: str) -> bool:
    try:
        return bool(client.call_dag(dag, {"die_incr": [1]}, direct_response=True).get(timeout_s=2.0) == 2)
    except (ray_sched.NoResourcesError, ray_sched.TimedOutError, ray_sched.ExecutionError):
        return False


def pins(group: Group) -> list[str]:
    status = ray.get(names.find(group.name, names.POLICY).status.remote(), timeout=WAIT_S)
    return sorted(pin for executor in status["executors"] for pin in executor["pinned_for"])


@pytest.mark.parametrize("role", [names.SCHEDULER, names.POLICY, names.INGRESS, names.STATS, names.GOSSIP])
def test_after_the_death_of_an_actor_everything_is_as_it_was(
    group: Group, client: Client, dag: str, role: str
) -> None:
    before = pins(group)
    assert any(pin.startswith("die_dag/") for pin in before)
    crash(group, role)
    eventually(lambda: succeeds(client, dag), f"a call after the death of the {role}")
    eventually(lambda: pins(group) == before, f"the same pins after the death of the {role}")
    eventually(lambda: refused_as_existing(client), "the DAG is known to exist")
    # What a new Scheduler or Policy makes of the pins that it finds, it has made when it pins another DAG.
    client.register_dag("die_probe", ["die_incr"], wait_s=WAIT_S)
    client.delete_dag("die_probe")
    eventually(lambda: pins(group) == before, f"still the same pins after the death of the {role}")


def refused_as_existing(client: Client) -> bool:
    try:
        client.register_dag("die_dag", ["die_incr"])
    except ray_sched.DagExistsError:
        return True
    except (ray_sched.NoResourcesError, ray_sched.TimedOutError):
        return False
    raise AssertionError("an acknowledged DAG was forgotten")


def test_a_function_that_ends_its_process_takes_nobody_else_down(
    group: Group, client: Client, dag: str
) -> None:
    def leave(_: Any) -> None:
        os._exit(3)

    client.register(leave, "die_leave")
    client.register_dag("die_leaves", ["die_leave"])
    with pytest.raises(ray_sched.ExecutionError, match="ended"):
        client.call_dag("die_leaves", {}, direct_response=True).get(timeout_s=WAIT_S)
    with pytest.raises(ray_sched.ExecutionError, match="ended"):
        client.function("die_leave")().get(timeout_s=WAIT_S)
    client.delete_dag("die_leaves")
    eventually(lambda: succeeds(client, dag), "a call after the death of an executor")
    eventually(lambda: "die_dag/die_incr" in pins(group), "the lost pin is made again")
