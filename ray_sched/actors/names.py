"""How the actors of a group are called, and how they are found by their names."""

from __future__ import annotations

from typing import Any, Final

import ray

from ray_sched.core.executors import Address
from ray_sched.errors import NotRunningError

NAMESPACE: Final = "ray_sched"

KVS: Final = "kvs"
STATS: Final = "stats"
POLICY: Final = "policy"
SCHEDULER: Final = "scheduler"
GOSSIP: Final = "gossip"
INGRESS: Final = "ingress"
_EXECUTOR: Final = "executor-"


def executor_role(ip: str, tid: int) -> str:
    return f"{_EXECUTOR}{ip}-{tid}"


def is_executor(role: str) -> bool:
    return role.startswith(_EXECUTOR)


def executor_address(role: str) -> Address:
    """What `executor_role` was made of."""
    ip, _, tid = role.removeprefix(_EXECUTOR).rpartition("-")
    return ip, int(tid)


def actor_name(group: str, role: str) -> str:
    return f"ray_sched:{group}:{role}"


def demand_prefix(group: str) -> str:
    """How the placement groups begin that stand for what a group found no room for."""
    return f"demand/{group}/"


def roles_by_group() -> dict[str, list[str]]:
    """The roles that run now in the connected Ray cluster, of each group."""
    found: dict[str, list[str]] = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        prefix, _, rest = entry["name"].partition(":")
        group, _, role = rest.rpartition(":")
        if entry["namespace"] == NAMESPACE and prefix == "ray_sched" and group:
            found.setdefault(group, []).append(role)
    return found


def executors() -> dict[Address, str]:
    """The executor actors of the connected Ray cluster, and the group of each."""
    return {
        executor_address(role): group
        for group, roles in roles_by_group().items()
        for role in roles
        if is_executor(role)
    }


def find(group: str, role: str) -> Any:
    """The handle of a running actor.

    Raises:
        NotRunningError: the connected Ray cluster has no such actor.
    """
    try:
        return ray.get_actor(actor_name(group, role), namespace=NAMESPACE)
    except ValueError:
        raise NotRunningError(
            f"no {role} of a scheduler group {group!r} runs in this Ray cluster; start one with: ray-sched up"
        ) from None
