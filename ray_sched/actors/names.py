"""How the actors of a group are called, and how they are found by their names."""

from __future__ import annotations

from typing import Any, Final

import ray

from ray_sched.actors import local_mode
from ray_sched.core.executor import Address
from ray_sched.errors import NotRunningError

NAMESPACE: Final = "ray_sched"

KVS: Final = "kvs"
STATS: Final = "stats"
POLICY: Final = "policy"
SCHEDULER: Final = "scheduler"
GOSSIP: Final = "gossip"
INGRESS: Final = "ingress"
_SHARD: Final = "ingress-"
_EXECUTOR: Final = "executor-"


def executor_role(ip: str, tid: int) -> str:
    return f"{_EXECUTOR}{ip}-{tid}"


def shard_role(number: int) -> str:
    """Of an ingress shard, from 1 on."""
    return f"{_SHARD}{number}"


def is_shard(role: str) -> bool:
    return role.startswith(_SHARD)


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
    if local_mode.is_on():
        entries = local_mode.actor_names()
    else:
        listed = ray.util.list_named_actors(all_namespaces=True)
        entries = [entry["name"] for entry in listed if entry["namespace"] == NAMESPACE]
    found: dict[str, list[str]] = {}
    for entry in entries:
        prefix, _, rest = entry.partition(":")
        group, _, role = rest.rpartition(":")
        if prefix == "ray_sched" and group:
            found.setdefault(group, []).append(role)
    return found


def executors() -> dict[Address, str]:
    """The executor actors of the connected Ray cluster, and the group of each. Connects to none."""
    if not local_mode.is_on() and not ray.is_initialized():  # to ask would start one
        return {}
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
        raise _not_running(group, role) from None


def find_for_actor(group: str, role: str) -> Any:
    """The same for an actor that calls another one: in Ray's local mode it goes past Ray.

    Raises:
        NotRunningError: there is no such actor.
    """
    if not local_mode.is_on():
        return find(group, role)
    actor = local_mode.find(actor_name(group, role))
    if actor is None:
        raise _not_running(group, role)
    return actor


def _not_running(group: str, role: str) -> NotRunningError:
    return NotRunningError(
        f"no {role} of a scheduler group {group!r} runs in the Ray cluster that this process is in; "
        "start one with: ray-sched up, or leave that cluster (ray.shutdown()) where it runs in another one"
    )
