"""The simulation against the real system: the same calls, in turn, on both.

    python -m benchmarks.validate_sim
    python -m benchmarks.validate_sim --policy random --load 0.7 --set policy.max_utilization=1

starts a real group with executors for each policy, sends it the very calls that a scenario draws (open loop),
and measures latencies as clients see them and utilization as the executors report it. Beforehand, calls of
no length, one after the other, tell what messages and executors add to each step: that is all that the
simulation is told of the machine. Writes benchmarks/results/<time>-simulation.json, and ends with exit code
1 where utilization or p50 differ by more than 20 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
import zmq

import ray_sched
from benchmarks.scheduler import ENVIRONMENT, START_S, Scheduler
from ray_sched import config_loading
from ray_sched.errors import TimedOutError
from ray_sched.sim.outcome import Outcome
from ray_sched.sim.scenario import Scenario
from ray_sched.sim.traffic import Arrival, arrivals
from ray_sched.sim.world import simulate
from ray_sched.values import loads, to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import DAG_CALL, STATUS, tcp

IP: Final = "127.0.13.1"
OWN_IP: Final = "127.0.13.2"
"""Where results and statuses come to."""
RESULTS_PORT: Final = 9200

ALLOWED: Final = 0.20
NETWORK_MS: Final = 0.1
"""A message over loopback; what is left of a call of no length is the executors' overhead."""
PROBES: Final = 200
PATIENCE_S: Final = 30.0

LOAD: Final = Scenario(
    executors=8,
    per_node=8,
    functions=3,
    service="exponential",
    service_ms=50.0,
    network_ms=NETWORK_MS,
    duration_s=60.0,
    warm_up_s=10.0,
)
LOADS: Final = [0.3, 0.5]
POLICIES: Final = ["random", "round-robin"]


@dataclass(frozen=True)
class Measured:
    p50_ms: float
    p99_ms: float
    utilization: float
    refused: int


def nap(library: object, number: int, seconds: float, *upstream: Any) -> int:
    """What each function does: sleep for as long as its call says."""
    time.sleep(seconds)
    return number


class Client:
    """Sends calls when they are due, and takes results and statuses as they come."""

    def __init__(self, functions: Sequence[str]) -> None:
        self._functions = functions
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._calls = self._context.socket(zmq.DEALER)
        self._calls.connect(tcp(IP, DAG_CALL))
        self._results = self._context.socket(zmq.PULL)
        self._results.bind(tcp(OWN_IP, RESULTS_PORT))
        self._statuses = self._context.socket(zmq.PULL)
        self._statuses.bind(tcp(OWN_IP, STATUS))
        self._poller = zmq.Poller()
        for socket in (self._calls, self._results, self._statuses):
            socket.setsockopt(zmq.LINGER, 0)
            self._poller.register(socket, zmq.POLLIN)
        self._sent_s: dict[int, float] = {}
        self._latencies_s: dict[int, float] = {}
        self._reported: list[tuple[float, float]] = []
        self._executors: set[tuple[str, int]] = set()
        self._refused = 0

    def close(self) -> None:
        self._context.destroy(0)

    def await_executors(self, count: int) -> None:
        """Until so many have reported. Raises TimedOutError."""
        deadline = time.monotonic() + START_S
        while len(self._executors) < count:
            if time.monotonic() > deadline:
                raise TimedOutError(f"{len(self._executors)} of {count} executors came within {START_S:g} s")
            self._take_in(deadline)

    def overhead_ms(self) -> float:
        """What an executor adds to each run, by calls of no length, one after the other."""
        none = Arrival(0.0, 0, (), (0.0,) * len(self._functions))
        spent_ms = []
        for number in range(PROBES):
            self._send(number, none)
            while number not in self._latencies_s:
                self._take_in(time.monotonic() + PATIENCE_S)
            spent_ms.append(self._latencies_s[number] * 1e3)
        steps = len(self._functions)
        return max(0.0, (statistics.median(spent_ms) - (steps + 2) * NETWORK_MS) / steps)

    def load(self, scenario: Scenario, status_period_s: float) -> Measured:
        """Send a scenario's calls, each at its time."""
        self._sent_s.clear()
        self._latencies_s.clear()
        self._reported.clear()
        self._refused = 0
        began = time.monotonic()
        due: dict[int, float] = {}
        for number, arrival in enumerate(arrivals(scenario)):
            due[number] = arrival.time_s
            while time.monotonic() < began + arrival.time_s:
                self._take_in(began + arrival.time_s)
            self._send(number, arrival)
        deadline = began + scenario.duration_s + PATIENCE_S
        while len(self._latencies_s) + self._refused < len(due) and time.monotonic() < deadline:
            self._take_in(deadline)
        # The statuses of the last period are still to come.
        until = began + scenario.duration_s + status_period_s
        while time.monotonic() < until:
            self._take_in(until)
        latencies_ms = sorted(
            latency_s * 1e3
            for number, latency_s in self._latencies_s.items()
            if due[number] >= scenario.warm_up_s
        )
        # A status speaks of the period before it.
        first, last = began + scenario.warm_up_s + status_period_s, began + scenario.duration_s
        return Measured(
            statistics.median(latencies_ms),
            latencies_ms[int(0.99 * len(latencies_ms))],
            statistics.fmean(share for when, share in self._reported if first <= when <= last),
            self._refused,
        )

    def _send(self, number: int, arrival: Arrival) -> None:
        call = cb.DagCall(name="d0", response_address=tcp(OWN_IP, RESULTS_PORT))
        for function, seconds in zip(self._functions, arrival.service_s, strict=True):
            call.function_args[function].values.extend((to_value(number), to_value(seconds)))
        message = call.SerializeToString()
        self._sent_s[number] = time.monotonic()
        self._calls.send_multipart([b"", message])

    def _take_in(self, until: float) -> None:
        """What comes before that time, once something does."""
        timeout_ms = max(0, int((until - time.monotonic()) * 1e3))
        for socket, _ in self._poller.poll(timeout_ms):
            if socket is self._results:
                number = loads(socket.recv())
                self._latencies_s[number] = time.monotonic() - self._sent_s[number]
            elif socket is self._statuses:
                status = internal_pb2.ThreadStatus.FromString(socket.recv())
                self._executors.add((status.ip, status.tid))
                self._reported.append((time.monotonic(), status.utilization))
            else:
                reply = cb.GenericResponse.FromString(socket.recv_multipart()[-1])
                self._refused += not reply.success


def configuration(policy: str, given: Mapping[str, str], folder: str) -> str:
    """A file for `up`: functions on all executors, which tell this program their statuses, too."""
    path = Path(folder, f"{policy}.yaml")
    settings: dict[str, dict[str, Any]] = {
        "policy": {"name": policy, "max_recent_calls": 0},
        "scheduler": {"num_replicas": LOAD.executors},
        "executor": {"scheduler_ips": [IP, OWN_IP]},
    }
    for name, value in given.items():
        section, _, leaf = name.partition(".")
        settings.setdefault(section, {})[leaf] = value
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def compare(policy: str, file: str, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Each load on a real group with that policy and configuration, and in the simulation."""
    config = config_loading.load(file, {}, {})
    (functions,) = LOAD.function_names
    rows = []
    with ExitStack() as running:
        client = running.enter_context(closing(Client(functions)))
        running.enter_context(Scheduler(IP, LOAD.executors, "--config", file))
        client.await_executors(LOAD.executors)
        with ray_sched.connect(IP) as registering:
            for function in functions:
                registering.register(nap, function)
            registering.register_dag("d0", functions, list(itertools.pairwise(functions)))
        overhead_ms = client.overhead_ms()
        for share in shares:
            scenario = dataclasses.replace(LOAD, load=share, overhead_ms=overhead_ms)
            time.sleep(config.policy.window_s)  # backoffs of the load before it end
            measured = client.load(scenario, config.executor.status_period_s)
            rows.append(row(policy, scenario, measured, simulate(scenario, config)))
            print(line(rows[-1]), flush=True)
    return rows


def row(policy: str, scenario: Scenario, real: Measured, simulated: Outcome) -> dict[str, Any]:
    return {
        "policy": policy,
        "load": scenario.load,
        "calls": simulated.all_arrivals,
        "overhead_ms": scenario.overhead_ms,
        "utilization": (real.utilization, simulated.utilization),
        "p50_ms": (real.p50_ms, simulated.quantile_s(0.5) * 1e3),
        "p99_ms": (real.p99_ms, simulated.quantile_s(0.99) * 1e3),
        "refused": (real.refused, simulated.all_refused),
    }


def difference(pair: tuple[float, float]) -> float:
    real, simulated = pair
    return simulated / real - 1


HEADER: Final = (
    f"{'policy':12} load  {'real':>7} {'simulated':>9} utilization      {'real':>7} {'simulated':>9} p50 ms"
)


def line(row: dict[str, Any]) -> str:
    util, p50 = row["utilization"], row["p50_ms"]
    return (
        f"{row['policy']:12} {row['load']:.2f}  {util[0]:7.3f} {util[1]:9.3f} {difference(util):+8.1%}"
        f"         {p50[0]:7.1f} {p50[1]:9.1f} {difference(p50):+8.1%}"
        f"   (p99 {row['p99_ms'][0]:.0f}, {row['p99_ms'][1]:.0f} ms; "
        f"refused {row['refused'][0]}, {row['refused'][1]}; overhead {row['overhead_ms']:.2f} ms)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validate_sim")
    parser.add_argument("--policy", action="append", help=f"default: {', '.join(POLICIES)}")
    parser.add_argument("--load", action="append", type=float, help="default: 0.3 and 0.5")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE: a setting, for both")
    options = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in options.set)
    os.environ.update(ENVIRONMENT)
    print(HEADER, flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for policy in options.policy or POLICIES:
            rows += compare(policy, configuration(policy, given, folder), options.load or LOADS)
    result = {
        "command": ["python", "-m", "benchmarks.validate_sim", *sys.argv[1:]],
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "scenario": dataclasses.asdict(LOAD),
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}-simulation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")
    far = [
        row for row in rows if max(abs(difference(row[what])) for what in ("utilization", "p50_ms")) > ALLOWED
    ]
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
