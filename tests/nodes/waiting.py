"""What the tests of several nodes wait for, and how they look at Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.reservations import PREFIX, group_name, listed
from ray_sched.client import Client
from ray_sched.core.executor import Address
from ray_sched.core.pins import Pin

WAIT_S = 10.0


def eventually(
    holds: Callable[[], bool],
    what: str,
    timeout_s: float = 60.0,
    how_it_is: Callable[[], object] = lambda: "",
) -> None:
    """`how_it_is` is asked when it does not hold in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s {how_it_is()}"
        time.sleep(0.1)


def policy_status(group: str) -> dict[str, Any]:
    """Nothing while the Policy is being started anew."""
    try:
        told: dict[str, Any] = ray.get(names.find(group, names.POLICY).status.remote(), timeout=WAIT_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return {}
    return told


def executors(group: str) -> set[Address]:
    """Those that the scheduler knows."""
    return {(e["ip"], e["tid"]) for e in policy_status(group).get("executors", [])}


def held(group: str) -> dict[str, dict[str, Any]]:
    """What each executor tells of itself: who holds or waits for something does not leave."""
    actors = {at: names.find(group, names.executor_role(*at)) for at in executors(group)}
    return {f"{ip}:{tid}": ray.get(a.status.remote(), timeout=WAIT_S) for (ip, tid), a in actors.items()}


def free(group: str) -> int:
    """How many executors the scheduler takes for free."""
    return sum(executor["free"] for executor in policy_status(group).get("executors", []))


def pins(group: str) -> set[str]:
    """Those that hold, as their placement groups are called."""
    return {
        group_name(Pin(*pin.split("/"), (executor["ip"], executor["tid"])))
        for executor in policy_status(group).get("executors", [])
        for pin in executor["pinned_for"]
    }


def reserved() -> set[str]:
    """The pins that Ray counts."""
    return {name for name, info in listed(PREFIX).items() if info["state"] == "CREATED"}


def all_reserved() -> set[str]:
    """Those, and those that Ray has no room for (yet)."""
    return set(listed(PREFIX))


def answer(client: Client, dag: str, args: dict[str, list[Any]]) -> Any:
    """The DAG's result; None where it cannot be called now."""
    try:
        return client.call_dag(dag, args, direct_response=True).get(timeout_s=2.0)
    except (ray_sched.NoResourcesError, ray_sched.TimedOutError, ray_sched.ExecutionError):
        return None
