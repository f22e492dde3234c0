"""Churn for as long as one likes, and what the group's processes hold before and after.

    python -m benchmarks.soak [--seconds 300]

Clients come and go, functions are registered again, DAGs are created, called and deleted, results go to
new response addresses and to keys, executors join and leave. After a fifth of the time, and at the end,
memory and open files of each process are looked at. The key-value store keeps what it was given: its growth
is that of its contents.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import Final

import psutil
import zmq

import ray_sched
from benchmarks.scheduler import Scheduler
from ray_sched.client import Client
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import STATUS, tcp

SCHEDULER_IP: Final = "127.0.17.81"
CALLS: Final = 10
"""In each round, of each kind."""
FUNCTIONS: Final = 50
EXECUTORS: Final = 2

Held = dict[str, tuple[float, int]]
"""Megabytes of memory and open files of each process."""


def one_round(number: int, statuses: zmq.SyncSocket) -> int:
    """One client's life; how many calls succeeded."""
    executor = internal_pb2.ThreadStatus(ip=f"127.0.17.{100 + number % 100}", tid=number % 10)
    with ray_sched.connect(SCHEDULER_IP) as client:
        function, dag = f"soak_{number % FUNCTIONS}", f"soak_dag_{number}"
        client.register(lambda _, x: x + 1, function)
        client.register_dag(dag, [function])
        executor.functions.append("other")
        executor.running = True
        statuses.send(executor.SerializeToString())
        called = sum(_call(client, dag, function, turn) for turn in range(CALLS))
        executor.running = False
        statuses.send(executor.SerializeToString())
        client.delete_dag(dag)
    return called


def _call(client: Client, dag: str, function: str, turn: int) -> int:
    direct = client.call_dag(dag, {function: [turn]}, direct_response=True)
    stored = client.call_dag(dag, {function: [turn]})
    return int(direct.get(timeout_s=10.0) == turn + 1) + int(stored.get(timeout_s=10.0) == turn + 1)


def held(scheduler: Scheduler) -> Held:
    found: Held = {}
    for process in psutil.Process(scheduler.pid).children(recursive=True):
        try:
            # Ray adds the method that runs just now.
            name = process.cmdline()[0].split()[0].rsplit("/")[-1].partition(".")[0]
            if name.startswith("ray::"):
                found[f"{name} {process.pid}"] = (process.memory_info().rss / 2**20, process.num_fds())
        except (psutil.Error, IndexError):
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    seconds = parser.parse_args().seconds
    with ExitStack() as running:
        scheduler = running.enter_context(Scheduler(SCHEDULER_IP, executors=EXECUTORS))
        context = running.enter_context(zmq.Context())
        statuses = running.enter_context(context.socket(zmq.PUSH))
        statuses.connect(tcp(SCHEDULER_IP, STATUS))
        scheduler.await_executors(EXECUTORS)
        began = time.monotonic()
        before, first_round = Held(), 0
        rounds = called = 0
        while time.monotonic() < began + seconds:
            called += one_round(rounds, statuses)
            rounds += 1
            if not before and time.monotonic() > began + seconds / 5:
                before, first_round = held(scheduler), rounds
        after = held(scheduler)
    print(f"{rounds} rounds, {called} calls, {2 * CALLS * rounds - called} wrong results")
    print(f"{'process':40} {'MB':>15} {'files':>11}   from round {first_round} to {rounds}")
    for name, (megabytes, files) in after.items():
        mb_before, files_before = before.get(name, (0.0, 0))
        print(f"{name:40} {mb_before:6.1f} > {megabytes:6.1f} {files_before:4d} > {files:4d}")
    return 0 if called == 2 * CALLS * rounds else 1


if __name__ == "__main__":
    sys.exit(main())
