"""Any candidate that is not overloaded, with equal chances."""

from __future__ import annotations

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorPool, ExecutorTable
from ray_sched.core.policies import Request, Rng, any_eligible


class RandomPolicy:
    def __init__(self, config: PolicyConfig) -> None:
        self._config = config

    def pick(
        self, candidates: ExecutorPool, request: Request, table: ExecutorTable, rng: Rng
    ) -> Executor | None:
        return any_eligible(candidates, self._config, rng)
