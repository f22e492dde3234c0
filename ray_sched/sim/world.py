"""The world: clients, network, groups and executors, put together and run for one policy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial

from ray_sched.config import Config
from ray_sched.core.executor import Address, Status
from ray_sched.reference import CloudburstReference
from ray_sched.sim.caches import Cache
from ray_sched.sim.clock import Clock
from ray_sched.sim.executor import SimulatedExecutor
from ray_sched.sim.group import Call, SimulatedGroup
from ray_sched.sim.outcome import Measures, Outcome
from ray_sched.sim.scenario import Scenario
from ray_sched.sim.traffic import Arrival, arrivals
from ray_sched.values import to_value
from ray_sched.wire import cloudburst_pb2 as cb

SETTLE_S = 1.0
"""Seconds before the first call, in which every executor reports and groups tell each other."""


def simulate(scenario: Scenario, config: Config) -> Outcome:
    """Run the scenario with the policy, the periods and the limits of a configuration.

    Raises ConfigError where scenario or trace are wrong.
    """
    scenario.check()
    return World(scenario, scenario.config(config)).run()


class World:
    def __init__(self, scenario: Scenario, config: Config) -> None:
        self._scenario = scenario
        self._config = config
        # Times are counted from the first moment at which calls may come.
        self._clock = Clock(-SETTLE_S)
        self._network_s = scenario.network_ms / 1e3
        self._rng = random.Random(f"{scenario.seed}/world")
        self._calls: dict[int, Arrival] = {}
        """Those in flight, by number."""
        self._traffic = arrivals(scenario)
        self._values: dict[str, cb.Value] = {}
        self._positions = {
            name: position for functions in scenario.function_names for position, name in enumerate(functions)
        }
        dags = {
            f"d{number}": _chain(f"d{number}", names) for number, names in enumerate(scenario.function_names)
        }
        self._groups = [
            SimulatedGroup(
                f"10.255.{number // 256}.{number % 256}",
                config,
                dags,
                self._clock,
                random.Random(f"{scenario.seed}/picks/{number}"),
            )
            for number in range(scenario.schedulers)
        ]
        hosts = [group.host for group in self._groups]
        for group in self._groups:
            group.peers.found(hosts)
        for number, dag in enumerate(dags.values()):
            self._groups[number % len(self._groups)].create(dag)
        self._caches = {_ip(node): Cache(scenario.cache_keys) for node in range(scenario.nodes)}
        self._home = {_ip(node): self._groups[node % len(self._groups)] for node in range(scenario.nodes)}
        self._executors: dict[Address, SimulatedExecutor] = {}
        for number in range(scenario.executors):
            ip = _ip(number // scenario.per_node)
            address = (ip, number % scenario.per_node)
            self._executors[address] = SimulatedExecutor(address, self._caches[ip], self._clock, self)
        self._measures = Measures(list(self._executors), scenario.warm_up_s, scenario.duration_s)

    def run(self) -> Outcome:
        clock, scenario = self._clock, self._scenario
        self._set_up()
        self._start_periods()
        self._next_call()
        clock.run(scenario.duration_s)
        busy_s = [group.busy_s - group.backlog_s() for group in self._groups]
        clock.run(scenario.duration_s + scenario.drain_s, lambda: not self._calls)
        return self._measures.outcome(len(self._calls), busy_s)

    def _set_up(self) -> None:
        """Let every executor report, and pin one function after the other, on executors in random order.

        So does the pin transaction. A group's order of candidates comes from it, and round-robin's turns
        from there: where all functions had the same order, a chain would run on one executor.
        """
        rng = random.Random(f"{self._scenario.seed}/pins")
        holders: dict[str, list[SimulatedExecutor]] = {}
        for executor, functions in zip(self._executors.values(), self._scenario.holdings(), strict=True):
            executor.report()
            for function in functions:
                holders.setdefault(function, []).append(executor)
        for function in sorted(holders):
            for executor in rng.sample(holders[function], len(holders[function])):
                executor.pin(function)

    # --- what executors need of it ---

    def run_s(self, number: int, function: str, misses: int) -> float:
        scenario = self._scenario
        service_s = self._calls[number].service_s[self._positions[function]]
        return service_s + (scenario.overhead_ms + misses * scenario.miss_ms) / 1e3

    def send(self, address: Address, kind: str, message: bytes) -> None:
        self._clock.after(self._network_s, self._executors[address].take, kind, message)

    def report(self, status: Status) -> None:
        cost_s = self._scenario.status_cost_us / 1e6
        groups = self._groups if self._scenario.statuses == "all" else (self._home[status.ip],)
        for group in groups:
            self._clock.after(self._network_s, group.work, cost_s, group.on_status, status)

    def result(self, number: int) -> None:
        self._clock.after(self._network_s, self._got_result, number)

    def ran(self, address: Address, began_s: float, hits: int, misses: int) -> None:
        self._measures.on_run(address, began_s, self._clock.now, hits, misses)

    # --- clients ---

    def _next_call(self) -> None:
        call = next(self._traffic, None)
        if call is not None:
            self._clock.at(call.time_s, self._call, call)

    def _call(self, arrival: Arrival) -> None:
        self._next_call()
        self._measures.on_arrival(arrival.time_s)
        number = self._measures.arrived
        self._calls[number] = arrival
        group = self._groups[int(self._rng.random() * len(self._groups))]
        scenario = self._scenario
        cost_us = scenario.call_cost_us + scenario.function_cost_us * len(arrival.service_s)
        message = self._message(number, arrival)
        self._clock.after(self._network_s, group.work, cost_us / 1e6, self._decide, group, number, message)

    def _message(self, number: int, arrival: Arrival) -> Call:
        first = self._scenario.function_names[arrival.dag][0]
        values = [self._value(key) for key in arrival.keys]
        if self._scenario.call == "one-shot":
            arguments = cb.Arguments(values=values)
            return cb.FunctionCall(name=first, arguments=arguments, response_key=str(number))
        call = cb.DagCall(name=f"d{arrival.dag}", output_key=str(number))
        if values:
            call.function_args[first].values.extend(values)
        return call

    def _value(self, key: str) -> cb.Value:
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = to_value(CloudburstReference(key))
        return value

    def _decide(self, group: SimulatedGroup, number: int, call: Call) -> None:
        dispatched = group.dispatch(call)
        if dispatched is None:
            self._measures.on_refusal(self._calls.pop(number).time_s)
            return
        for executor, kind, message in dispatched[1]:
            self.send(executor.address, kind, message)

    def _got_result(self, number: int) -> None:
        self._measures.on_result(self._calls.pop(number).time_s, self._clock.now)

    # --- what happens each period ---

    def _start_periods(self) -> None:
        config, clock = self._config, self._clock
        for group in self._groups:
            self._spread(config.scheduler.heartbeat_s, group.tick)
            self._spread(config.stats.policy_period_s, partial(self._read_cached_keys, group))
            if len(self._groups) > 1:
                self._spread(config.gossip.period_s, partial(self._gossip, group))
                clock.at(-SETTLE_S / 2, self._gossip, group)
        for executor in self._executors.values():
            self._spread(config.executor.status_period_s, executor.report_period)
        for second in range(int(self._scenario.duration_s)):
            clock.at(second + 0.5, self._sample)

    def _spread(self, period_s: float, act: Callable[[], None]) -> None:
        """Each period from a random moment on, as processes do that were not started together."""
        self._clock.every(period_s, self._rng.random() * period_s, act)

    def _gossip(self, group: SimulatedGroup) -> None:
        message = group.gossip()
        for peer in self._groups:
            if peer.host in group.peers.hosts():
                self._clock.after(self._network_s, peer.on_gossip, message)

    def _read_cached_keys(self, group: SimulatedGroup) -> None:
        group.read_cached_keys(lambda ip: self._caches[ip].keys())

    def _sample(self) -> None:
        executors = self._groups[0].table.executors
        left_out = sum(executor.overloaded for executor in executors.values()) / max(1, len(executors))
        self._measures.on_second(self._clock.now, left_out)


def _ip(node: int) -> str:
    return f"10.{node // 65536}.{node // 256 % 256}.{node % 256}"


def _chain(name: str, functions: tuple[str, ...]) -> cb.Dag:
    return cb.Dag(
        name=name,
        functions=[cb.Dag.FunctionReference(name=function) for function in functions],
        connections=[cb.Dag.Link(source=a, sink=b) for a, b in itertools.pairwise(functions)],
    )
