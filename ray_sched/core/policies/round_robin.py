"""The candidates in turn, for each function by itself; overloaded ones are left out."""

from __future__ import annotations

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorPool, ExecutorTable
from ray_sched.core.policies import Request, Rng, eligible


class RoundRobinPolicy:
    def __init__(self, config: PolicyConfig) -> None:
        self._config = config

    def pick(
        self, candidates: ExecutorPool, request: Request, table: ExecutorTable, rng: Rng
    ) -> Executor | None:
        count, _ = eligible(candidates, self._config, rng)
        if not count:
            return None
        position = candidates.cursor % count
        candidates.cursor = position + 1
        return candidates.at(position)
