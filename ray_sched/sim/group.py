"""A simulated scheduler group: one table and one dispatcher, with what a group does each period.

A real group keeps its table several times (Policy, Scheduler, Ingress) and the copies within
milliseconds of each other; here they are one. Its one thread works on one message after the other,
each of which takes as long as the scenario says: what waits, waits here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan, plan_of
from ray_sched.core.dispatch import Dispatched, Dispatcher, seq_at
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.peers import Peers, locations_in, status_message
from ray_sched.core.policies import load_policy
from ray_sched.errors import RefusedError
from ray_sched.sim.clock import Clock
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2

Call = cb.FunctionCall | cb.DagCall


class SimulatedGroup:
    """`stored_dags`: what the key-value store has, by name. `rng`: the generator of the picks."""

    def __init__(
        self, host: str, config: Config, stored_dags: Mapping[str, cb.Dag], clock: Clock, rng: random.Random
    ) -> None:
        self.host = host
        self.busy_s = 0.0
        """Seconds that its thread worked, and will have worked on what waits already."""
        self._clock = clock
        self._stored_dags = stored_dags
        self._free_at_s = 0.0
        self.table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
        )
        self.arrivals = Arrivals()
        self.peers = Peers(host)
        self._plans: dict[str, Plan] = {}
        self._dispatcher = Dispatcher(self.table, self._plans, load_policy(config.policy), rng, self.arrivals)

    def create(self, dag: cb.Dag) -> None:
        """A DAG was created here."""
        self._plans[dag.name] = plan_of(dag)
        self.peers.created(dag.name)

    def work(self, cost_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do what a message asks for, after what came before it; it takes that long."""
        self._free_at_s = max(self._free_at_s, self._clock.now) + cost_s
        self.busy_s += cost_s
        self._clock.at(self._free_at_s, act, *arguments)

    def backlog_s(self) -> float:
        """Seconds of work that wait or go on."""
        return max(0.0, self._free_at_s - self._clock.now)

    def dispatch(self, call: Call) -> Dispatched | None:
        """Place a call; None where it is refused."""
        now = self._clock.now
        try:
            if isinstance(call, cb.DagCall):
                return self._dispatcher.call_dag(call, now, now)
            return self._dispatcher.call(call, now)
        except RefusedError:
            return None

    def on_status(self, status: Status) -> None:
        now = self._clock.now
        self.table.on_status(status, now, seq_at(now))

    def gossip(self) -> internal_pb2.SchedulerStatus:
        """What peers are told."""
        return status_message(self._plans, self.table.told_locations())

    def on_gossip(self, message: internal_pb2.SchedulerStatus) -> None:
        self.table.merge_locations(locations_in(message), self._clock.now)
        for name in self.peers.to_learn(message.dags, self._plans):
            self._plans[name] = plan_of(self._stored_dags[name])

    def tick(self) -> None:
        """What a group does at each heartbeat."""
        now = self._clock.now
        self.table.age(now)
        self.table.remove_silent(now)
        # Nobody is told what changed: there is one copy.
        self.table.dirty.clear()
        self.table.cached_keys.dirty.clear()
        self.arrivals.take()

    def read_cached_keys(self, cached_at: Callable[[str], Iterable[str]]) -> None:
        """Learn what is cached at each node that an executor is known of."""
        for ip in sorted(self.table.ips()):
            self.table.cached_keys.set(ip, cached_at(ip))
