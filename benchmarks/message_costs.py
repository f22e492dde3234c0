"""What a call, a status and gossip cost a scheduler group: the numbers that `ray-sched sim` is given.

    python -m benchmarks.message_costs

starts a real group, sends it calls and the statuses of thousands of executors, and reads from the kernel how
long the busiest thread of its Ingress worked meanwhile, and its Policy in all. Gossip and the group's ticks
are timed in this process, with the core alone. Writes benchmarks/results/<time>-message-costs.json.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import zmq

from benchmarks import load, payloads
from benchmarks.helper import Helper
from benchmarks.scheduler import ENVIRONMENT, Scheduler
from ray_sched import group_status
from ray_sched.config import Config
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.peers import locations_in, status_message
from ray_sched.core.pinning import Pinning
from ray_sched.core.pins import PinRequest, SendPin, answer_name
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import DAG_CALL, STATUS, tcp

IP: Final = "127.0.13.4"
EXECUTORS_IP: Final = "127.0.13.6"
CLIENTS: Final = 8
DURATION_S: Final = 6.0
EXECUTORS: Final = 3000
"""That report; nobody calls them."""
STATUSES: Final = 30_000
RATE_PER_S: Final = 5000
TABLES: Final = (300, 3000, 30_000)
"""Executors of the tables whose gossip and ticks are timed."""
REPLICAS: Final = (10, 50, 100, 200)
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class Work:
    """How long the processes of a group have worked, by the kernel's word, in steps of 10 ms."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before = self._read()

    def _read(self) -> dict[str, dict[str, float]]:
        return {
            role: {
                task.name: sum(map(int, (task / "stat").read_text().rpartition(")")[2].split()[11:13]))
                * TICK_S
                for task in Path(f"/proc/{pid}/task").iterdir()
            }
            for role, pid in self._pids.items()
        }

    def take(self, messages: int) -> dict[str, float]:
        """Microseconds for each message since the last time: of a role's busiest thread, and of all."""
        now, before = self._read(), self._before
        self._before = now
        costs = {}
        for role, threads in now.items():
            spent_s = [spent_s - before[role].get(thread, 0.0) for thread, spent_s in threads.items()]
            costs[f"{role}_thread"] = max(spent_s) / messages * 1e6
            costs[f"{role}_process"] = sum(spent_s) / messages * 1e6
        return costs


def call_costs(work: Work) -> dict[str, dict[str, float]]:
    """Of a DAG call, by the chain's length."""
    costs = {}
    for length in payloads.CHAINS:
        work.take(1)
        measured = load.run(
            tcp(IP, DAG_CALL),
            payloads.dag_call(length),
            CLIENTS,
            DURATION_S,
            warm_up_s=0.0,
            succeeded=payloads.succeeded,
        )
        if measured.refused:
            raise RuntimeError(f"{measured.refused} of {measured.sent} calls were refused")
        costs[str(length)] = {"calls_per_s": measured.calls_per_s, **work.take(measured.sent)}
    return costs


class Statuses:
    """Sends statuses of executors that nobody calls."""

    def __init__(self, context: zmq.Context[zmq.SyncSocket], work: Work) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(tcp(IP, STATUS))
        self._work = work
        self._sent = 0

    def costs(self, utilization: Callable[[int], float]) -> dict[str, float]:
        """Of one status; `utilization` by how often its executor reported before."""
        messages = [
            _status(number % EXECUTORS, utilization(number // EXECUTORS)) for number in range(STATUSES)
        ]
        self._work.take(1)
        began = time.monotonic()
        for number, message in enumerate(messages):
            self._socket.send(message)
            if number % 50 == 0:
                time.sleep(max(0.0, began + number / RATE_PER_S - time.monotonic()))
        self._sent += STATUSES
        self._await_taken()
        return self._work.take(STATUSES)

    def _await_taken(self) -> None:
        deadline = time.monotonic() + 60.0
        while _status_counts() < self._sent:
            if time.monotonic() > deadline:
                raise RuntimeError("the group took in too few statuses within 60 s")
            time.sleep(0.5)

    def close(self) -> None:
        self._socket.close()


def _status_counts() -> int:
    counts: dict[str, int] = group_status.read(Config(host=IP))["counts"]
    return counts.get("statuses", 0)


def _status(number: int, utilization: float) -> bytes:
    return internal_pb2.ThreadStatus(
        ip=f"127.13.{number // 10 // 250}.{number // 10 % 250 + 1}",
        tid=number % 10,
        functions=[f"other_{number % 100}"],
        utilization=utilization,
        running=True,
    ).SerializeToString()


def core_costs(executors: int) -> dict[str, float]:
    """Milliseconds of this process for gossip and ticks of a table, one function to each executor."""
    table = _table(
        Status(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 0, (f"f{n % 300}",)) for n in range(executors)
    )
    peer = _table(())
    message = status_message([], table.locations()).SerializeToString()

    def tell() -> None:
        status_message([], table.locations()).SerializeToString()

    def hear() -> None:
        peer.merge_locations(locations_in(internal_pb2.SchedulerStatus.FromString(message)), 1.0)

    def tick() -> None:
        table.age(1.0)
        table.remove_silent(1.0)

    return {
        "bytes": len(message),
        "hear_first_ms": _ms(hear, 1),
        "tell_ms": _ms(tell),
        "hear_ms": _ms(hear),
        "tick_ms": _ms(tick),
    }


def pin_costs(replicas: int) -> dict[str, float]:
    """Of one function that is pinned on as many executors as there are, by the pin transaction alone."""
    table = _table(Status(f"10.0.{n >> 8}.{n & 255}", 0) for n in range(replicas))
    pinning = Pinning(
        table,
        random.Random(1),
        functions_per_executor=1,
        local=False,
        pin_timeout_s=10.0,
        settle_s=1.0,
    )

    def pin() -> None:
        _, effects = pinning.create("d", [PinRequest("f")] * replicas, 0.0)
        for effect in effects:  # it grows while executors accept
            if isinstance(effect, SendPin):
                effects += pinning.on_answer(True, answer_name(effect.address, effect.function), 0.0)

    def report() -> None:
        pinning.on_status(("10.0.0.0", 0), ("f",), 1.0)

    return {"pin_ms": _ms(pin, 1), "status_us": _ms(report) * 1e3}


def _table(statuses: Iterable[Status]) -> ExecutorTable:
    config = Config()
    table = ExecutorTable(config.policy, local=False, pin_grace_s=1.0, executor_timeout_s=1e9)
    for status in statuses:
        table.on_status(status, 0.0)
    return table


def _ms(act: Callable[[], None], times: int = 5) -> float:
    """The least CPU time of some tries."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        act()
        spent.append(time.process_time() - began)
    return min(spent) * 1e3


def measure() -> dict[str, Any]:
    core = {str(executors): core_costs(executors) for executors in TABLES}
    pins = {str(replicas): pin_costs(replicas) for replicas in REPLICAS}
    with ExitStack() as running:
        scheduler = running.enter_context(Scheduler(IP))
        running.enter_context(Helper("executors", EXECUTORS_IP, IP, str(payloads.EXECUTORS)))
        scheduler.fill()
        actors = group_status.read(Config(host=IP))["actors"]
        work = Work({role: actors[role]["pid"] for role in ("ingress", "policy")})
        calls = call_costs(work)
        context = running.enter_context(zmq.Context())
        statuses = Statuses(context, work)
        try:
            return {
                "calls": calls,
                "statuses": {
                    "first": statuses.costs(lambda turn: 0.3),
                    "unchanged": statuses.costs(lambda turn: 0.3),
                    "overloaded": statuses.costs(lambda turn: 0.9),
                },
                "core": core,
                "pins": pins,
            }
        finally:
            statuses.close()


def main() -> int:
    os.environ.update(ENVIRONMENT)
    costs = measure()
    first, last = str(payloads.CHAINS[0]), str(payloads.CHAINS[-1])
    one, many = (costs["calls"][length]["ingress_thread"] for length in (first, last))
    function_us = (many - one) / (int(last) - int(first))
    result = {
        "command": ["python", "-m", "benchmarks.message_costs", *sys.argv[1:]],
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        **costs,
        "call_cost_us": one - function_us * int(first),
        "function_cost_us": function_us,
        "status_cost_us": costs["statuses"]["unchanged"]["ingress_thread"],
    }
    print(json.dumps(result, indent=1))
    path = Path(__file__).parent / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}-message-costs.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
