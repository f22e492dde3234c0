"""The node that has most of the call's references cached; a share of the calls goes anywhere.

The random share keeps hot keys from tying all calls to the nodes that were first to cache them.
"""

from __future__ import annotations

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorPool, ExecutorTable
from ray_sched.core.policies import Request, Rng, any_at_all, any_of, eligible


class LocalityPolicy:
    def __init__(self, config: PolicyConfig) -> None:
        self._config = config

    def pick(
        self, candidates: ExecutorPool, request: Request, table: ExecutorTable, rng: Rng
    ) -> Executor | None:
        if not request.references:
            # `any_eligible`, whose first return takes less time than to call it.
            at_random = rng.random() < self._config.random_threshold
            ready = candidates.available.items
            if ready and not at_random:
                return ready[int(rng.random() * len(ready))]
            return any_at_all(candidates, self._config, rng)
        count, at_random = eligible(candidates, self._config, rng)
        if count and not at_random:
            ip = self._best_ip(candidates, request, table, rng)
            if ip is not None:
                neighbours = candidates.by_ip[ip]
                return neighbours[int(rng.random() * len(neighbours))]
        return any_of(candidates, count, rng)

    def _best_ip(
        self, candidates: ExecutorPool, request: Request, table: ExecutorTable, rng: Rng
    ) -> str | None:
        by_ip = candidates.by_ip
        cached: dict[str, int] = {}
        for key in request.references:
            ips = table.cached_keys.ips.get(key)
            if not ips:
                continue
            # The smaller side is walked: a key may be cached everywhere, a function pinned once.
            shared = (
                (ip for ip in ips if ip in by_ip)
                if len(ips) <= len(by_ip)
                else (ip for ip in by_ip if ip in ips)
            )
            for ip in shared:
                cached[ip] = cached.get(ip, 0) + 1
        if not cached:
            return None
        most = max(cached.values())
        best = sorted(ip for ip, count in cached.items() if count == most)
        return best[int(rng.random() * len(best))]
