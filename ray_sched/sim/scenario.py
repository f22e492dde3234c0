"""What is simulated: each field with its default, unit and meaning, which are the command's options, too.

What a real cluster is configured with (policies, periods, limits) is not repeated here: a simulation
takes it from the same `Config`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_sched.config import Config, setting
from ray_sched.errors import ConfigError
from ray_sched.sim.service import DISTRIBUTIONS

MODES = ("local", "cluster")
ANY_MANAGEMENT = "192.0.2.1"
"""Stands for a management node: that there is one makes it cluster mode. No message goes there."""


@dataclass(frozen=True)
class Scenario:
    executors: int = setting(30, "Executors in all.", minimum=1, maximum=60_000)
    per_node: int = setting(3, "Executors on each node; they share its cache.", minimum=1, maximum=1000)
    mode: str = setting(
        "local", "As without a management node (local), or as with one (cluster).", choices=MODES
    )
    schedulers: int = setting(1, "Scheduler groups; each call goes to one of them at random.", minimum=1)
    statuses: str = setting(
        "own",
        "Executors report to their own group alone, or to all; groups share the nodes evenly.",
        choices=("own", "all"),
    )
    call: str = setting(
        "dag", "Calls of DAGs, or one-shot calls of single functions.", choices=("dag", "one-shot")
    )
    dags: int = setting(1, "DAGs, each with functions of its own; calls are spread evenly.", minimum=1)
    functions: int = setting(1, "Functions of each DAG, one after the other.", minimum=1)
    replicas: int = setting(
        0, "Executors that each function is pinned on; 0: as many as there is room for.", minimum=0
    )
    arrivals: str = setting(
        "poisson",
        "How calls arrive: poisson, constant, or bursts (Poisson at two rates in turns).",
        choices=("poisson", "constant", "bursts"),
    )
    trace: str = setting(
        "", "CSV file of calls in place of --arrivals; columns: time_s, and if wanted dag, keys, service_ms."
    )
    load: float = setting(
        0.5,
        "Share of the executors' time that the calls' functions take, without misses and overhead.",
        minimum=0.0001,
        maximum=100,
    )
    rate_per_s: float = setting(0.0, "Calls a second in place of --load; 0: as --load says.", minimum=0)
    burst_period_s: float = setting(10.0, "Seconds from one burst to the next.", minimum=0.001)
    burst_length_s: float = setting(2.0, "Seconds that a burst lasts.", minimum=0.001)
    burst_factor: float = setting(
        2.0, "Rate within a burst by the mean rate; between bursts it is as much lower.", minimum=1
    )
    service: str = setting(
        "exponential", "Distribution of the functions' run times.", choices=tuple(DISTRIBUTIONS)
    )
    service_ms: float = setting(100.0, "Mean run time of a function, milliseconds.", minimum=0.001)
    service_cv: float = setting(
        1.0, "Standard deviation by mean of a lognormal run time.", minimum=0.01, maximum=100
    )
    references: int = setting(0, "Keys that the first function of each call reads.", minimum=0, maximum=100)
    keys: int = setting(1000, "Different keys that there are.", minimum=1, maximum=1_000_000)
    skew: float = setting(1.0, "Zipf exponent of the keys' popularity; 0: all alike.", minimum=0, maximum=10)
    cache_keys: int = setting(100, "Keys that the cache of a node holds.", minimum=0)
    miss_ms: float = setting(20.0, "What a key that is not cached adds to a run, milliseconds.", minimum=0)
    network_ms: float = setting(0.1, "Milliseconds that any message is on its way.", minimum=0)
    overhead_ms: float = setting(0.0, "What an executor spends on each run beside it, ms.", minimum=0)
    call_cost_us: float = setting(
        0.0, "Microseconds that a scheduler group works on a call, whatever its length.", minimum=0
    )
    function_cost_us: float = setting(0.0, "The same for each function of the call.", minimum=0)
    status_cost_us: float = setting(0.0, "The same for each status.", minimum=0)
    duration_s: float = setting(60.0, "Seconds in which calls arrive; a trace is cut there.", minimum=0.001)
    warm_up_s: float = setting(10.0, "Seconds at the beginning that the figures leave out.", minimum=0)
    drain_s: float = setting(60.0, "Seconds that the last calls then have to end.", minimum=0)
    seed: int = setting(1, "The same seed gives the same figures, to the last digit.", minimum=0)

    @property
    def rate(self) -> float:
        """Calls a second, where no trace gives them."""
        steps = 1 if self.call == "one-shot" else self.functions
        return self.rate_per_s or self.load * self.executors / (steps * self.service_ms / 1e3)

    @property
    def nodes(self) -> int:
        return -(-self.executors // self.per_node)

    @property
    def function_names(self) -> tuple[tuple[str, ...], ...]:
        """The functions of each DAG, in the order of the chain."""
        return tuple(
            tuple(f"f{dag}.{position}" for position in range(self.functions)) for dag in range(self.dags)
        )

    def config(self, base: Config) -> Config:
        """The configuration with this mode."""
        return base.replace(mgmt="" if self.mode == "local" else ANY_MANAGEMENT)

    def check(self) -> None:
        """Raise ConfigError where values that are allowed each for itself contradict each other."""
        if self.warm_up_s >= self.duration_s:
            raise _clash("warm_up_s", self.warm_up_s, f"less than duration_s, {self.duration_s:g}")
        if self.schedulers > self.nodes:
            raise _clash("schedulers", self.schedulers, f"at most one for each of the {self.nodes} nodes")
        if self.arrivals == "bursts" and not self.trace:
            if self.burst_length_s >= self.burst_period_s:
                limit = f"less than burst_period_s, {self.burst_period_s:g}"
                raise _clash("burst_length_s", self.burst_length_s, limit)
            most = self.burst_period_s / self.burst_length_s
            if self.burst_factor > most:
                limit = f"at most burst_period_s / burst_length_s, {most:g}"
                raise _clash("burst_factor", self.burst_factor, limit)
        if self.replicas > self.executors:
            raise _clash("replicas", self.replicas, f"at most executors, {self.executors}")
        wanted = self.dags * self.functions * max(1, self.replicas)
        if self.mode == "cluster" and self.call == "dag" and wanted > self.executors:
            needed = f"at least {wanted}: in cluster mode an executor holds one function"
            raise _clash("executors", self.executors, needed)

    def holdings(self) -> list[tuple[str, ...]]:
        """The functions that each executor holds, spread so that nodes hold different ones.

        With one-shot calls in cluster mode none is held: free executors take them.
        """
        names = [name for functions in self.function_names for name in functions]
        held: list[list[str]] = [[] for _ in range(self.executors)]
        if self.mode == "cluster":
            if self.call == "dag":
                filled = min(self.executors, self.replicas * len(names) or self.executors)
                for executor in range(filled):
                    held[executor].append(names[executor % len(names)])
        else:
            replicas = self.replicas or self.executors
            for number, name in enumerate(names):
                for replica in range(replicas):
                    held[(number + replica * max(1, self.executors // replicas)) % self.executors].append(
                        name
                    )
        return [tuple(functions) for functions in held]


def _clash(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name} = {value!r} is not allowed; it must be {allowed}")
