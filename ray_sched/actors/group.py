"""The scheduler group: which actors it has, how they are started in order, watched and stopped.

Rules of this file:
1. All actors are created at once, because each process costs about a second; `ready()` is asked in order.
2. What this start did not create it never stops.
3. Nothing waits without an end.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ray_sched.actors import local_mode, names, reservations, resources
from ray_sched.actors.slots import EXECUTOR_CLASS, start_actor
from ray_sched.actors.unwrapping import plain_error
from ray_sched.bound_ports import group_ports
from ray_sched.config import Config
from ray_sched.errors import AlreadyRunningError, ConfigError, NotRunningError, TimedOutError

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
    shard: Part = Part("ingress shard", "ray_sched.actors.ingress:ShardActor")
    """Of the ingress, where `ingress.shards` asks for several."""


PARTS: Final = Parts(
    control=(
        Part(names.KVS, "ray_sched.actors.kvs:KvsActor"),
        Part(names.STATS, "ray_sched.actors.stats:StatsActor"),
        Part(names.POLICY, "ray_sched.actors.policy:PolicyActor"),
        Part(names.SCHEDULER, "ray_sched.actors.scheduler:SchedulerActor"),
        Part(names.GOSSIP, "ray_sched.actors.gossip:GossipActor"),
        Part(names.INGRESS, "ray_sched.actors.ingress:IngressActor"),
    ),
    executor=Part("executor", EXECUTOR_CLASS),
)

_EXECUTORS: Final = "executors"
_SHARDS: Final = "shards"
_STOP_ORDER: Final = (
    names.INGRESS,
    _SHARDS,
    names.POLICY,
    _EXECUTORS,
    names.GOSSIP,
    names.SCHEDULER,
    names.STATS,
    names.KVS,
)
"""The policy before the executors, since it starts some; the key-value store last, since others may still
write."""

_WITHOUT_HISTORY: Final = (names.KVS, names.STATS, names.GOSSIP)
_LAST_WORD_S: Final = 10.0
"""What the Policy has to say who is missing, when the time for a start is over."""
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
            ConfigError: several ingress shards are asked for in Ray's local mode.
            TimedOutError: not everything was ready within `config.start_timeout_s`.
            RaySchedError: an actor could not start, for the reason that its own error gives.
        """
        began = time.monotonic()
        deadline = began + config.start_timeout_s
        if config.ingress.shards > 1 and local_mode.is_on():
            raise ConfigError(
                f"ingress.shards = {config.ingress.shards} is not allowed in Ray's local mode, which has one "
                "process; it must be 1"
            )
        _refuse_second(config.group_name)
        group = cls(config.group_name, {}, [(config.host, port) for port in group_ports(config)])
        try:
            for role, handle in _create(config, parts):
                group.handles[role] = handle
            for role, facts in group._await_ready(deadline, config.start_timeout_s):
                if on_ready:
                    on_ready(role, facts, time.monotonic() - began)
            if config.host in config.scheduler_ips:
                group._await_reports(deadline, config.start_timeout_s)
        except BaseException:
            group.stop(config.stop_timeout_s / 2)
            raise
        return group

    @classmethod
    def attach(cls, name: str) -> Group:
        """The group of that name that runs in the connected Ray cluster.

        Raises:
            NotRunningError: there is none.
        """
        handles = _find_all(name)
        if not handles:
            raise NotRunningError(
                f"no scheduler group {name!r} runs in this Ray cluster; start one with: ray-sched up"
            )
        return cls(name, handles)

    def status(self, timeout_s: float = 3.0) -> dict[str, dict[str, Any]]:
        """What each actor's `status()` says, by role; `{"error": reason}` where none comes in time."""
        return self._ask({role: handle.status.remote() for role, handle in self.handles.items()}, timeout_s)

    def why(self, name: str, timeout_s: float = 3.0) -> dict[str, Any]:
        """What each actor that decides or runs something remembers under a name, by role: an `Account`;
        `{"error": reason}` where none comes in time."""
        asked = {role: handle for role, handle in self.handles.items() if role not in _WITHOUT_HISTORY}
        return self._ask({role: handle.why.remote(name) for role, handle in asked.items()}, timeout_s)

    def _ask(self, pending: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=timeout_s)
        answers: dict[str, Any] = {}
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
        for number, kind in enumerate(_STOP_ORDER):
            if kind == _EXECUTORS:
                # From here on nobody starts any more.
                self.handles |= _find_all(self.name)
                stage = [role for role in self.handles if names.is_executor(role)]
            elif kind == _SHARDS:
                stage = [role for role in self.handles if names.is_shard(role)]
            else:
                stage = [kind] if kind in self.handles else []
            # One that hangs may not use up the time of those after it.
            share = max(0.0, deadline - time.monotonic()) / (len(_STOP_ORDER) - number + 1)
            refs = [self.handles[role].stop.remote() for role in stage]
            ray.wait(refs, num_returns=len(refs), timeout=share)
            for role, ref in zip(stage, refs, strict=True):
                try:
                    ray.get(ref, timeout=0)
                except GetTimeoutError:
                    log.info("%s did not stop within %.1f s", role, share)
                except (RayTaskError, RayActorError) as error:
                    log.info("%s did not stop cleanly: %s", role, plain_error(role, error))
            if kind == names.POLICY and stage:
                ray.kill(self.handles[kind], no_restart=True)
        for handle in self.handles.values():
            ray.kill(handle, no_restart=True)
        if resources.counts_resources():
            executors = [names.executor_address(role) for role in self.handles if names.is_executor(role)]
            reservations.remove_all(self.name, executors)
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

    def _await_reports(self, deadline: float, timeout_s: float) -> None:
        """Else whoever creates a DAG right after the start would hear that no executor is free."""
        roles = {names.executor_address(role): role for role in self.handles if names.is_executor(role)}
        while roles:
            is_late = time.monotonic() > deadline
            asked = self.handles[names.POLICY].unknown.remote(list(roles))
            # It was ready: a moment past the deadline it says what is missing.
            unknown = _get(names.POLICY, asked, deadline + _LAST_WORD_S, timeout_s)
            roles = {address: roles[address] for address in unknown}
            if roles and is_late:
                missing = ", ".join(roles.values())
                raise TimedOutError(
                    f"no status of {missing} has reached the policy within start_timeout_s = {timeout_s:g} s"
                )
            time.sleep(_POLL_S if roles else 0)


def _refuse_second(group: str) -> None:
    roles = names.roles_by_group().get(group)
    if roles:
        raise AlreadyRunningError(
            f"a scheduler group {group!r} runs in this Ray cluster already ({', '.join(_in_order(roles))}); "
            "stop it with: ray-sched down, or choose another --host"
        )


def _create(config: Config, parts: Parts) -> Iterator[tuple[str, Any]]:
    node = _own_node(config.host)
    where = resources.executor_options(node, gpu=False, holds_slot=False)
    for part in parts.control:
        if part.role != names.KVS or config.kvs.host == "embedded":
            yield part.role, _actor(config, part, part.role, where, (config,))
    for number in range(1, config.ingress.shards + 1 if config.ingress.shards > 1 else 1):
        role = names.shard_role(number)
        yield role, _actor(config, parts.shard, role, where, (config, number))
    count = config.executor.count
    holds_slot = resources.own_slots(node["NodeID"], count)
    for tid in range(count):
        role = names.executor_role(config.host, tid)
        gpu = tid >= count - config.executor.gpu_count
        options = resources.executor_options(node, gpu, holds_slot)
        args = (config, tid, gpu, config.host, holds_slot)
        yield role, _actor(config, parts.executor, role, options, args)


def _actor(config: Config, part: Part, role: str, where: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
    name = names.actor_name(config.group_name, role)
    try:
        return start_actor(part.cls, name, {**part.options(config), **where}, args)
    except ValueError as error:  # somebody starts a group of this name at the same time
        raise AlreadyRunningError(f"the actor {name} is in this Ray cluster already: {error}") from None


def _own_node(host: str) -> dict[str, Any]:
    """The node with the group's address; if none has it, this one, since loopback has many addresses."""
    if not resources.counts_resources():
        return {"NodeID": ""}
    nodes = resources.living_nodes()
    here = ray.get_runtime_context().get_node_id()
    by_address = [node for node in nodes if node["NodeManagerAddress"] == host]
    return next(node for node in [*by_address, *nodes] if by_address or node["NodeID"] == here)


def _get(role: str, ref: Any, deadline: float, timeout_s: float) -> Any:
    try:
        return ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
    except GetTimeoutError:
        raise TimedOutError(f"{role} did not become ready within start_timeout_s = {timeout_s:g} s") from None
    except (RayTaskError, RayActorError) as error:
        raise plain_error(role, error) from error


def _find_all(group: str) -> dict[str, Any]:
    """The handles of all actors of a group, by role; without those that end at this moment."""
    handles: dict[str, Any] = {}
    for role in _in_order(names.roles_by_group().get(group, [])):
        with contextlib.suppress(NotRunningError):
            handles[role] = names.find(group, role)
    return handles


def _in_order(roles: Iterable[str]) -> list[str]:
    order = [part.role for part in PARTS.control]

    def place(role: str) -> tuple[Any, ...]:
        if names.is_executor(role):
            return 2, names.executor_address(role)
        return (1, role) if names.is_shard(role) else (0, order.index(role))

    return sorted(roles, key=place)


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
