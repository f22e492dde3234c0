"""How a Python program finds the running group's Scheduler."""

from __future__ import annotations

from typing import Any

from ray_sched import running
from ray_sched.errors import NotRunningError


def get_scheduler(group: str | None = None, address: str | None = None, timeout_s: float = 5.0) -> Any:
    """The Scheduler's actor handle; connects this process to its Ray cluster where it is not connected yet.

    Its methods take and give Python values: `ray.get(handle.call_dag.remote("pipeline", {"incr": [1]}))`.

    Args:
        group: the group's name, by default its host address; None: the only one there is.
        address: `HOST:PORT` of its Ray cluster; None: the connected one, else that of this user's group
            on this machine.
        timeout_s: seconds that the cluster has to take the connection.

    Raises:
        NotRunningError: there is no such group, or there are several and none was named.
    """
    import ray

    from ray_sched.actors import cluster, names

    if not ray.is_initialized():
        if address is None:
            entry = running.only(group)
            if not entry.ray_address:
                raise NotRunningError(f"the scheduler group {entry.group!r} is still being started")
            address, group = entry.ray_address, entry.group
        cluster.connect(address, timeout_s)
    if group is None:
        groups = sorted(names.roles_by_group())
        if len(groups) != 1:
            which = f"several scheduler groups run ({', '.join(groups)}); name one" if groups else "none runs"
            raise NotRunningError(f"no single scheduler group in this Ray cluster: {which}")
        group = groups[0]
    return names.find(group, names.SCHEDULER)
