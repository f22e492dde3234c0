"""Keeps executors on the nodes of the Ray cluster, and tells of those that come and go.

A thread of the Policy's looks at Ray's nodes and at the executor actors' names, starts and retires what
`core.slots` says, and has a call parked on each executor: it fails within milliseconds when the executor's
process dies. What it starts is detached, so that a Policy that is started anew finds it by name.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import ActorDiedError

from ray_sched.actors import local_mode, names, resources
from ray_sched.actors.demand import Demands
from ray_sched.actors.messages import Presence
from ray_sched.config import Config
from ray_sched.core.executor import Address
from ray_sched.core.slots import GiveUp, Holder, Retire, Slots, Start
from ray_sched.errors import RaySchedError

log = logging.getLogger(__name__)

EXECUTOR_CLASS: Final = "ray_sched.actors.executor:ExecutorActor"
WATCH_S: Final = 5.0
"""How long a call stays parked: one that never returned would hold up its actor's end."""
AGAIN_S: Final = 0.2
"""After which an executor that is being started anew is asked again, at first."""
DEMAND_LOOK_S: Final = 0.5

OPTIONS: Final[Mapping[str, Any]] = {
    "namespace": names.NAMESPACE,
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "enable_task_events": False,
}
"""Of every actor of a group."""


def start_actor(cls: str, name: str, options: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
    """A handle of a new actor of the class `module:Class`.

    Raises ValueError where the name is taken, as Ray does.
    """
    module, _, attribute = cls.partition(":")
    plain = getattr(importlib.import_module(module), attribute)
    configured = getattr(plain, "concurrency_groups", None)
    groups = configured(args[0]) if configured else getattr(plain, "CONCURRENCY_GROUPS", {})
    if local_mode.is_on():
        plain = local_mode.adapted(plain, name, groups)
    remote = ray.remote(concurrency_groups=groups)(plain) if groups else ray.remote(plain)
    return remote.options(name=name, **{**OPTIONS, **options}).remote(*args)


@dataclass
class _Watched:
    handle: Any
    holder: Holder
    pid: int = 0
    """Of its process, once it has told; 0 while it has none."""
    pause_s: float = AGAIN_S / 2
    """How long it was left alone before it was asked again, when it was being started anew."""


@dataclass(frozen=True)
class Listener:
    """Who is told of executors, in the keeper's thread."""

    came: Callable[[Address, Presence, Mapping[str, Any]], None]
    """One has a new process; with what it tells of itself and Ray's entry of its node."""
    died: Callable[[Address], None]
    """Its process has ended; another one follows."""
    gone: Callable[[Address], None]
    """It is gone for good, or until it is started again."""


class SlotKeeper:
    def __init__(
        self, config: Config, listener: Listener, demands: Demands, is_quiet: Callable[[], bool]
    ) -> None:
        self._config = config
        self._listener = listener
        self._demands = demands
        self._is_quiet = is_quiet
        self._slots = Slots(
            threads=config.ports.threads,
            idle_timeout_s=config.executor.idle_timeout_s,
            min_count=config.executor.min_count,
            start_timeout_s=config.executor.start_timeout_s,
            # What it may wait for, and then the end of its process.
            leave_timeout_s=config.executor.depart_timeout_s
            + config.executor.depart_linger_s
            + config.stop_timeout_s,
        )
        self._watched: dict[Address, _Watched] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._own_node = ""
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slot-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def left(self, address: Address) -> None:
        """An executor said itself that it leaves."""
        self._calls.put(lambda: self._on_left(address))

    def stop(self, timeout_s: float) -> None:
        """Start and watch nobody any more; the executors go on."""
        self._stopping.set()
        self._calls.put(lambda: None)
        self._thread.join(timeout_s)

    # --- the thread ---

    def _run(self) -> None:
        self._own_node = ray.get_runtime_context().get_node_id()
        next_look = next_demands = 0.0
        forgot_old = False
        while not self._stopping.is_set():
            try:
                now = time.monotonic()
                if not forgot_old:
                    self._demands.forget_old()
                    forgot_old = True
                if now >= next_demands:
                    next_demands = now + DEMAND_LOOK_S
                    for node in self._demands.look(now, may_ask=self._is_quiet()):
                        self._slots.wake(node)
                        next_look = now
                if now >= next_look:
                    next_look = now + self._config.executor.nodes_period_s
                    self._look(now)
                self._take_calls(min(next_look, next_demands))
            except Exception:  # Ray's control store may be away for a while; executors go on without it
                log.exception("the nodes of the Ray cluster could not be looked at")
                self._stopping.wait(AGAIN_S)
        self._demands.close()

    def _take_calls(self, until: float) -> None:
        while not self._stopping.is_set():
            try:
                call = self._calls.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            call()

    def _look(self, now: float) -> None:
        self._nodes = {node["NodeID"]: node for node in resources.living_nodes()}
        named = names.executors()
        for address in [address for address in self._watched if address not in named]:
            self._forget(address)
        for address, group in named.items():
            watched = self._watched.get(address)
            if watched is None:
                self._watch(address, group)
            elif watched.holder.own and watched.holder.node and watched.holder.node not in self._nodes:
                self._give_up(address)  # it belongs to a node that is gone: Ray must not wait for that
        nodes = [
            resources.offered(node, self._config)
            for node_id, node in self._nodes.items()
            if node_id != self._own_node
        ]
        holders = {address: watched.holder for address, watched in self._watched.items()}
        for effect in self._slots.look(nodes, holders, now):
            match effect:
                case Start():
                    self._start(effect)
                case Retire(address):
                    log.info("executor=%s:%d is idle and leaves", *address)
                    self._watched[address].handle.depart.remote()
                case GiveUp(address):
                    self._give_up(address)

    def _start(self, start: Start) -> None:
        ip, tid = start.address
        node = self._nodes[start.node]
        log.info("executor=%s:%d is started on node=%s", ip, tid, start.node)
        config = self._config
        try:
            start_actor(
                EXECUTOR_CLASS,
                names.actor_name(config.group_name, names.executor_role(ip, tid)),
                resources.executor_options(node, start.gpu, holds_slot=True),
                (config, tid, start.gpu, ip, True),
            )
        except ValueError as error:
            log.info("executor=%s:%d is there already: %s", ip, tid, error)

    def _give_up(self, address: Address) -> None:
        log.warning(
            "executor=%s:%d is given up: it did not come, did not leave, or its node is gone", *address
        )
        try:
            ray.kill(names.find(self._config.group_name, names.executor_role(*address)), no_restart=True)
        except RaySchedError:
            return

    def _on_left(self, address: Address) -> None:
        watched = self._watched.get(address)
        if watched is not None and watched.holder.own:
            self._slots.on_left(address, watched.holder.node)

    # --- watching ---

    def _watch(self, address: Address, group: str) -> None:
        try:
            handle = names.find(group, names.executor_role(*address))
        except RaySchedError:
            return
        own = group == self._config.group_name
        self._watched[address] = _Watched(handle, Holder("", own=own))
        self._park(address, 0.0)

    def _park(self, address: Address, seconds: float) -> None:
        watched = self._watched.get(address)
        if watched is None:
            return
        parked = watched.handle.watch.remote(seconds).future()
        # Ray's own thread must not be held up, and may not ask Ray anything.
        parked.add_done_callback(
            lambda done: self._calls.put(lambda: self._on_answer(address, watched, done))
        )

    def _on_answer(self, address: Address, watched: _Watched, done: Any) -> None:
        if self._watched.get(address) is not watched:
            return
        error = done.exception()
        if error is None:
            presence: Presence = done.result()
            watched.holder = Holder(presence.node, presence.gpu, watched.holder.own, presence.idle_s)
            if presence.pid != watched.pid:
                watched.pid = presence.pid
                watched.pause_s = AGAIN_S / 2
                if presence.node not in self._nodes:
                    self._nodes = {node["NodeID"]: node for node in resources.living_nodes()}
                self._listener.came(address, presence, self._nodes.get(presence.node, {}))
            self._park(address, self._watch_s())
        elif isinstance(error, ActorDiedError):
            self._forget(address)
        else:
            if watched.pid:
                log.info("executor=%s:%d has died: %s", *address, type(error).__name__)
                watched.pid = 0
                self._listener.died(address)
            watched.pause_s = min(2 * watched.pause_s, WATCH_S)
            timer = threading.Timer(
                watched.pause_s, lambda: self._calls.put(lambda: self._park(address, 0.0))
            )
            timer.daemon = True
            timer.start()

    def _watch_s(self) -> float:
        # With thousands of executors, still no more than some hundred answers a second.
        return max(min(WATCH_S, self._config.executor.idle_timeout_s / 4 or WATCH_S), len(self._watched) / 50)

    def _forget(self, address: Address) -> None:
        del self._watched[address]
        self._listener.gone(address)
