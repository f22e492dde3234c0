"""The scheduler group: which actors it has, how they are started in order, watched and stopped.

Rules of this file:
1. All actors are created at once, because each process costs about a second; `ready()` is asked in order.
2. What this start did not create it never stops.
3. Nothing waits without an end.
"""

from __future__ import annotations

import importlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sched.actors import names
from ray_sched.actors.unwrapping import plain_error
from ray_sched.bound_ports import group_ports
from ray_sched.config import Config
from ray_sched.errors import AlreadyRunningError, NotRunningError, TimedOutError

log = logging.getLogger(__name__)

OnReady = Callable[[str, dict[str, Any], float], None]
"""Told of each part when it is ready: its role, what `ready()` returned, seconds since the group's start."""


@dataclass(frozen=True)
class Part:
    """A role, the class that plays it, and how Ray runs it."""

    role: str
    cls: str
    """`module:Class`; imported when a group starts, so that looking at one imports nothing."""
    options: Callable[[Config], Mapping[str, Any]] = field(default=lambda config: {})
    """Further options for `ray.remote`, such as `max_concurrency`."""


@dataclass(frozen=True)
class Parts:
    """What a group is made of; its parts become ready in this order, the executors last."""

    control: tuple[Part, ...]
    executor: Part


PARTS: Final = Parts(
    control=(
        Part(names.KVS, "ray_sched.actors.kvs:KvsActor"),
        Part(names.STATS, "ray_sched.actors.stats:StatsActor"),
        Part(names.POLICY, "ray_sched.actors.policy:PolicyActor"),
        Part(names.SCHEDULER, "ray_sched.actors.scheduler:SchedulerActor"),
        Part(names.GOSSIP, "ray_sched.actors.gossip:GossipActor"),
        Part(names.INGRESS, "ray_sched.actors.ingress:IngressActor"),
    ),
    executor=Part("executor", "ray_sched.actors.executor:ExecutorActor"),
)

_STOP_ORDER: Final = (names.GOSSIP, names.SCHEDULER, names.POLICY, names.STATS, names.KVS)
"""After the ingress and the executors; the key-value store last, since the others may still write."""

_OPTIONS: Final[Mapping[str, Any]] = {
    "namespace": names.NAMESPACE,
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "enable_task_events": False,
}
_CLEANUP_S: Final = 10.0
"""What stopping may take after a start that failed."""
_POLL_S: Final = 0.05


class Group:
    """A running scheduler group of the connected Ray cluster."""

    def __init__(self, name: str, handles: dict[str, Any], ports: Sequence[tuple[str, int]] = ()) -> None:
        self.name = name
        self.handles = handles
        """The actors' handles by role."""
        self._ports = ports

    @classmethod
    def start(cls, config: Config, on_ready: OnReady | None = None, parts: Parts = PARTS) -> Group:
        """Starts a group and waits until all of it is ready; stops what it started when that fails.

        Raises:
            AlreadyRunningError: the Ray cluster has actors of a group of this name.
            TimedOutError: not everything was ready within `config.start_timeout_s`.
            RaySchedError: an actor could not start, for the reason that its own error gives.
        """
        began = time.monotonic()
        deadline = began + config.start_timeout_s
        _refuse_second(config.group_name)
        group = cls(config.group_name, {}, [(config.host, port) for port in group_ports(config)])
        try:
            for role, handle in _create(config, parts):
                group.handles[role] = handle
            for role, facts in group._await_ready(deadline, config.start_timeout_s):
                if on_ready:
                    on_ready(role, facts, time.monotonic() - began)
        except BaseException:
            group.stop(_CLEANUP_S)
            raise
        return group

    @classmethod
    def attach(cls, name: str) -> Group:
        """The group of that name that runs in the connected Ray cluster.

        Raises:
            NotRunningError: there is none.
        """
        roles = names.roles_by_group().get(name, [])
        if not roles:
            raise NotRunningError(
                f"no scheduler group {name!r} runs in this Ray cluster; start one with: ray-sched up"
            )
        return cls(name, {role: names.find(name, role) for role in _in_order(roles)})

    def status(self, timeout_s: float = 3.0) -> dict[str, dict[str, Any]]:
        """What each actor's `status()` says, by role; `{"error": reason}` where none comes in time."""
        pending = {role: handle.status.remote() for role, handle in self.handles.items()}
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=timeout_s)
        answers: dict[str, dict[str, Any]] = {}
        for role, ref in pending.items():
            try:
                answers[role] = ray.get(ref, timeout=0)
            except GetTimeoutError:
                answers[role] = {"error": "not answering"}
            except (RayTaskError, RayActorError) as error:
                answers[role] = {"error": str(plain_error(role, error))}
        return answers

    def stop(self, timeout_s: float) -> None:
        """Asks every actor to stop, then ends it, and waits until its name and ports are free.

        Raises:
            TimedOutError: that took longer than `timeout_s` seconds; the actors were killed all the same.
        """
        deadline = time.monotonic() + timeout_s
        stages = _stop_stages(self.handles)
        for number, stage in enumerate(stages):
            # One that hangs may not use up the time of those after it.
            share = max(0.0, deadline - time.monotonic()) / (len(stages) - number + 1)
            refs = [self.handles[role].stop.remote() for role in stage]
            ray.wait(refs, num_returns=len(refs), timeout=share)
            for role, ref in zip(stage, refs, strict=True):
                try:
                    ray.get(ref, timeout=0)
                except GetTimeoutError:
                    log.info("%s did not stop within %.1f s", role, share)
                except (RayTaskError, RayActorError) as error:
                    log.info("%s did not stop cleanly: %s", role, plain_error(role, error))
        for handle in self.handles.values():
            ray.kill(handle, no_restart=True)
        _wait_until_free(self.name, list(self.handles), self._ports, deadline, timeout_s)

    def _await_ready(self, deadline: float, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        for role in [role for role in self.handles if not names.is_executor(role)]:
            yield role, _get(role, self.handles[role].ready.remote(), deadline, timeout_s)
        pending = {h.ready.remote(): role for role, h in self.handles.items() if names.is_executor(role)}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            ref = done[0] if done else next(iter(pending))
            role = pending.pop(ref)
            yield role, _get(role, ref, deadline, timeout_s)


def _refuse_second(group: str) -> None:
    roles = names.roles_by_group().get(group)
    if roles:
        raise AlreadyRunningError(
            f"a scheduler group {group!r} runs in this Ray cluster already ({', '.join(_in_order(roles))}); "
            "stop it with: ray-sched down, or choose another --host"
        )


def _create(config: Config, parts: Parts) -> Iterator[tuple[str, Any]]:
    where = _placement(config.host)
    for part in parts.control:
        if part.role != names.KVS or config.kvs.host == "embedded":
            yield part.role, _actor(config, part, part.role, where, (config,))
    first_gpu = config.executor.count - config.executor.gpu_count
    for tid in range(config.executor.count):
        yield (
            names.executor_role(tid),
            _actor(config, parts.executor, names.executor_role(tid), where, (config, tid, tid >= first_gpu)),
        )


def _actor(config: Config, part: Part, role: str, where: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
    module, _, name = part.cls.partition(":")
    cls = getattr(importlib.import_module(module), name)
    groups = getattr(cls, "CONCURRENCY_GROUPS", {})
    options = {"name": names.actor_name(config.group_name, role), **_OPTIONS, **part.options(config), **where}
    remote = ray.remote(concurrency_groups=groups)(cls) if groups else ray.remote(cls)
    return remote.options(**options).remote(*args)


def _placement(host: str) -> dict[str, Any]:
    """The node with the group's address; if none has it, this one, since loopback has many addresses."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return {}
    here = ray.get_runtime_context().get_node_id()
    node_id = next((node["NodeID"] for node in nodes if node["NodeManagerAddress"] == host), here)
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def _get(role: str, ref: Any, deadline: float, timeout_s: float) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
        return facts
    except GetTimeoutError:
        raise TimedOutError(f"{role} did not become ready within start_timeout_s = {timeout_s:g} s") from None
    except (RayTaskError, RayActorError) as error:
        raise plain_error(role, error) from error


def _stop_stages(roles: Iterable[str]) -> list[list[str]]:
    executors = [role for role in roles if names.is_executor(role)]
    stages = [[names.INGRESS], executors, *([role] for role in _STOP_ORDER)]
    return [kept for stage in stages if (kept := [role for role in stage if role in roles])]


def _in_order(roles: Iterable[str]) -> list[str]:
    order = [part.role for part in PARTS.control]
    return sorted(
        roles, key=lambda r: (1, names.executor_tid(r)) if names.is_executor(r) else (0, order.index(r))
    )


def _wait_until_free(
    group: str, roles: Sequence[str], ports: Sequence[tuple[str, int]], deadline: float, timeout_s: float
) -> None:
    while True:
        named = set(roles) & set(names.roles_by_group().get(group, []))
        bound = [] if named else [f"{host}:{port}" for host, port in ports if _listening(host, port)]
        if not named and not bound:
            return
        if time.monotonic() > deadline:
            left = ", ".join(sorted(named) or bound)
            raise TimedOutError(f"still there {timeout_s:g} s after the stop of group {group!r}: {left}")
        time.sleep(_POLL_S)


def _listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_POLL_S)
        return probe.connect_ex((host, port)) == 0
