"""`python -m benchmarks.deaths`: ends each part of a group while calls run, and measures what callers see.

A Ray cluster on this machine: a head with the group, and nodes with two slots each. Threads call a DAG of
one function, which is pinned once, some 250 times a second. Then a process gets SIGKILL (for a node: all of
its processes), and the calls go on until all of them succeed again. For each death:

- again: seconds from the death until a call succeeded that began after it and after the last that failed.
- slowest: seconds that the slowest call took that succeeded after the death.
- lost: calls that were accepted and never answered (within `RESULT_S`).
- errors: calls that were answered with an error value.
- refused: calls that the scheduler refused, or did not take within `ACCEPT_S`; nobody runs those.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import ray_sched
from ray_sched.client import Client
from ray_sched.config import Config

HOST: Final = "127.0.6.21"
NODES: Final = [f"127.0.6.{last}" for last in range(22, 99)]
THREADS: Final = 16
PAUSE_S: Final = 0.05
"""Of each thread between two calls, so that some of them call at every moment, whoever waits in vain."""
ACCEPT_S: Final = 1.0
RESULT_S: Final = 5.0
STEADY_S: Final = 2.0
"""How long all calls have to succeed before the next death, and after one."""
GIVE_UP_S: Final = 60.0
START_S: Final = 30.0
DAG: Final = "deaths"

ACTORS: Final = ["ingress", "scheduler", "policy", "stats", "gossip"]
RAY: Final = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
QUICK: Final = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "500",
}


@dataclass
class Call:
    began: float
    ended: float = 0.0
    outcome: str = "running"


@dataclass
class Load:
    """Calls without a pause, each with its times and how it ended."""

    client: Client
    calls: list[Call] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        while not self.stopping.is_set():
            call = Call(time.monotonic())
            self.calls.append(call)
            call.outcome = self._call()
            call.ended = time.monotonic()
            time.sleep(PAUSE_S)

    def _call(self) -> str:
        try:
            future = self.client.call_dag(DAG, {"f": [1]}, direct_response=True, timeout_s=ACCEPT_S)
        except ray_sched.RaySchedError:
            return "refused"
        try:
            return "ok" if future.get(timeout_s=RESULT_S) == 2 else "wrong"
        except ray_sched.TimedOutError:
            return "lost"
        except ray_sched.RaySchedError:
            return "errors"

    def is_steady(self, now: float) -> bool:
        """Whether all calls of the last while succeeded, and there were some."""
        recent = [call for call in self.calls[-100_000:] if call.ended > now - STEADY_S or not call.ended]
        ended = [call for call in recent if call.ended]
        stuck = any(not call.ended and now - call.began > STEADY_S for call in recent)
        return bool(ended) and not stuck and all(call.outcome == "ok" for call in ended)

    def await_steady(self, since: float) -> None:
        while not self.is_steady(time.monotonic()) or time.monotonic() < since + STEADY_S:
            if time.monotonic() - since > GIVE_UP_S:
                raise RuntimeError(f"calls did not succeed again within {GIVE_UP_S:g} s")
            time.sleep(0.05)


@dataclass
class Death:
    again_s: float
    slowest_s: float
    counts: Counter[str]


def measure(load: Load, kill: Callable[[], None]) -> Death:
    load.await_steady(time.monotonic())
    at = time.monotonic()
    kill()
    load.await_steady(at)
    after = [call for call in load.calls if call.ended > at]
    failed = [call for call in after if call.outcome != "ok"]
    succeeded = [call for call in after if call.outcome == "ok"]
    last = max([at, *(call.began for call in failed)])
    again = min(call.ended for call in succeeded if call.began > last) - at
    slowest = max(call.ended - call.began for call in succeeded)
    load.calls.clear()
    return Death(again, slowest, Counter(call.outcome for call in failed))


class Stage:
    """The cluster, the group, and who holds the function."""

    def __init__(self, quick: bool) -> None:
        os.environ.update(RAY | (QUICK if quick else {}))
        from ray.cluster_utils import Cluster

        from ray_sched.actors.cluster import connect
        from ray_sched.actors.group import Group

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"},
        )
        connect(self.cluster.address, START_S)
        self.nodes: dict[str, Any] = {}
        self.addresses = iter(NODES)
        for _ in range(2):
            self.add_node()
        config = Config(host=HOST).replace(
            **{
                "executor.count": 0,
                "executor.functions_per_executor": 1,
                "policy.max_recent_calls": 0,
            }
        )
        self.group = Group.start(config)
        self.client = ray_sched.connect(HOST)
        self.client.register(lambda _, x: x + 1, "f")
        self.client.register_dag(DAG, ["f"], wait_s=60)

    def add_node(self) -> None:
        ip = next(self.addresses)
        self.nodes[ip] = self.cluster.add_node(
            num_cpus=1, resources={"executor": 2, "pin": 2}, node_ip_address=ip
        )

    def status(self, role: str) -> dict[str, Any]:
        import ray

        from ray_sched.actors import names

        status: dict[str, Any] = ray.get(names.find(HOST, role).status.remote(), timeout=30)
        return status

    def holder(self) -> tuple[str, int]:
        executors = self.status("policy")["executors"]
        return next((e["ip"], e["tid"]) for e in executors if e["pinned_for"])

    def kill_actor(self, role: str) -> None:
        os.kill(self.status(role)["pid"], signal.SIGKILL)

    def kill_executor(self) -> None:
        os.kill(self.executor_pid(*self.holder()), signal.SIGKILL)

    def executor_pid(self, ip: str, tid: int) -> int:
        import ray

        from ray_sched.actors import names

        actor = names.find(HOST, names.executor_role(ip, tid))
        pid: int = ray.get(actor.watch.remote(0.0), timeout=30).pid
        return pid

    def cut_node(self) -> None:
        ip, _ = self.holder()
        node = self.nodes.pop(ip)
        pids = [node.all_processes["raylet"][0].process.pid]
        pids += [
            self.executor_pid(ip, tid) for tid in range(2)
        ]  # they would outlive their raylet for a while
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        from ray_sched.actors.cluster import disconnect

        self.client.close()
        self.group.stop(30.0)
        disconnect()
        self.cluster.shutdown()


def row(kind: str, deaths: list[Death]) -> str:
    times = [death.again_s for death in deaths]
    total: Counter[str] = sum((death.counts for death in deaths), Counter())
    counted = " | ".join(str(total[name]) for name in ("lost", "errors", "refused"))
    spread = f"{min(times):.2f} to {max(times):.2f}"
    slowest = statistics.median(death.slowest_s for death in deaths)
    return (
        f"| {kind} | {len(deaths)} | {statistics.median(times):.2f} | {spread} | {slowest:.2f} | {counted} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deaths")
    parser.add_argument("--rounds", type=int, default=5, help="how often each part is ended")
    parser.add_argument(
        "--quick-health-checks", action="store_true", help="Ray looks at its nodes every 0.5 s"
    )
    parser.add_argument(
        "--only", default="", help="only the parts whose name contains one of these, as in a,b"
    )
    options = parser.parse_args()
    stage = Stage(options.quick_health_checks)
    load = Load(stage.client)
    load.start()
    try:
        print("| death of | times | again s, median | range | slowest s, median | lost | errors | refused |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        kinds: dict[str, Callable[[], None]] = {
            role: lambda role=role: stage.kill_actor(role)  # type: ignore[misc]
            for role in ACTORS
        }
        kinds |= {"executor": stage.kill_executor, "node": stage.cut_node}
        for kind, kill in kinds.items():
            if not any(part in kind for part in options.only.split(",")):
                continue
            deaths = []
            for _ in range(options.rounds):
                if kind == "node":
                    stage.add_node()
                    load.await_steady(time.monotonic())
                deaths.append(measure(load, kill))
            print(row(kind, deaths), flush=True)
    finally:
        load.stop()
        stage.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
