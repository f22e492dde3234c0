"""The parts of a group, and what ties them to each other."""

from __future__ import annotations

import random
from pathlib import Path

from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan
from ray_sched.core.dispatch import Dispatcher
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import load_policy
from tests.faults.simulated.executor import Executor
from tests.faults.simulated.ingress import Ingress
from tests.faults.simulated.policy import Policy
from tests.faults.simulated.relay import Part, Relay
from tests.faults.simulated.scheduler import Scheduler
from tests.faults.simulated.store import Store


def config(*, local: bool) -> Config:
    return Config().replace(
        **{
            "mgmt": "" if local else "10.0.0.200",
            "policy.max_recent_calls": 0,
            "scheduler.pin_timeout_s": 3.0,
            "scheduler.executor_timeout_s": 12.0,
            "scheduler.noted_calls_bytes": 1 << 16,
        }
    )


class World:
    def __init__(self, seed: int, folder: Path) -> None:
        self.relay = Relay(seed)
        rng = self.relay.rng
        self.config = config(local=rng.random() < 0.3)
        capacity = 0 if self.config.local else 1
        self.store = Store(self.relay, "store")
        self.scheduler = Scheduler(self.relay, "scheduler", self)
        self.policy = Policy(self.relay, "policy", self, folder, capacity)
        self.ingress = Ingress(self.relay, "ingress", self, folder)
        self.executors = [
            Executor(self.relay, self, number, folder, capacity=capacity)
            for number in range(rng.randrange(4, 9))
        ]
        self.parts: list[Part] = [self.store, self.scheduler, self.policy, self.ingress, *self.executors]
        for part in self.parts:
            part.start()

    def close(self) -> None:
        self.ingress.close()
        self.policy.close()
        for executor in self.executors:
            executor.close()

    def table(self) -> ExecutorTable:
        limits = self.config.scheduler
        return ExecutorTable(
            self.config.policy,
            local=self.config.local,
            pin_grace_s=limits.pin_grace_s,
            executor_timeout_s=limits.executor_timeout_s,
        )

    def dispatcher(self, table: ExecutorTable, plans: dict[str, Plan]) -> Dispatcher:
        rng = random.Random(self.relay.rng.getrandbits(32))
        return Dispatcher(table, plans, load_policy(self.config.policy), rng, Arrivals())

    def epoch(self) -> int:
        return self.relay.rng.getrandbits(48)

    def send(self, source: Part, target: Executor, kind: str, message: bytes) -> None:
        self.relay.wire(
            source,
            target,
            kind,
            lambda: target.receive(kind, message),
            connection=kind,
            dropped=target.cut_off if kind in ("call", "schedule") else None,
        )

    def validate(self) -> None:
        """What holds at any moment."""
        for part in (self.scheduler, self.policy, self.ingress):
            if part.up:
                part.table.validate()
        if self.policy.up:
            self.policy.pinning.validate()
        for executor in self.executors:
            if executor.up and not self.config.local:
                assert len(executor.execution.functions) <= 1, f"{executor.name} holds too much"
