"""What ingress shards bring and cost: groups with 1, 2 and 4 of them, the same calls to each in turns.

    python -m benchmarks.shards [SECONDS]

starts the groups, three played executors for each, and reads from the kernel how long the threads of the
ingress and of its shards worked for each call. On a machine whose cores the load generator needs itself, the
calls a second say little; from the busiest thread's time follows what a part would come to on a core of its
own. Prints a table, and writes benchmarks/results/<time>-shards.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import load, payloads
from benchmarks.helper import Helper
from benchmarks.scheduler import Scheduler
from ray_sched.wire.ports import DAG_CALL, FUNCTION_CALL, tcp

SHARDS: Final = (1, 2, 4)
SHARDS_VARIABLE: Final = "RAY_SCHED_INGRESS_SHARDS"
LOADS: Final = (
    ("one-shot", FUNCTION_CALL, payloads.one_shot_call(), (1, 32)),
    ("chain of 3", DAG_CALL, payloads.dag_call(3), (1, 8, 32)),
    ("chain of 10", DAG_CALL, payloads.dag_call(10), (32,)),
)
ROUNDS: Final = 5


class Threads:
    """CPU time of the threads of a group's ingress processes, in nanoseconds, by the kernel's books."""

    def __init__(self, told: dict[str, Any]) -> None:
        actors = told["actors"]
        self._pids = {role: int(actors[role]["pid"]) for role in actors if role.startswith("ingress")}
        self._before = self._read()

    def _read(self) -> dict[str, dict[str, int]]:
        return {
            role: {
                task.name: int((task / "schedstat").read_text().split()[0])
                for task in Path(f"/proc/{pid}/task").iterdir()
            }
            for role, pid in self._pids.items()
        }

    def take(self, calls: int) -> dict[str, float]:
        """Microseconds a call since the last time: of all processes, and of the busiest thread of the one
        that has the ports and of any shard."""
        now, before = self._read(), self._before
        self._before = now
        spent = {
            role: [t - before[role].get(thread, 0) for thread, t in threads.items()]
            for role, threads in now.items()
        }
        shards = [threads for role, threads in spent.items() if role != "ingress"]
        return {
            "all_us": sum(map(sum, spent.values())) / calls / 1e3,
            "front_us": sum(spent["ingress"]) / calls / 1e3,
            "front_thread_us": max(spent["ingress"]) / calls / 1e3,
            "shard_thread_us": max((max(threads) for threads in shards), default=0) / calls / 1e3,
        }


def measure(seconds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        groups = {}
        for number, shards in enumerate(SHARDS):
            os.environ[SHARDS_VARIABLE] = str(shards)
            ip, executors_ip = f"127.0.13.{20 + 2 * number}", f"127.0.13.{21 + 2 * number}"
            group = stack.enter_context(Scheduler(ip))
            stack.enter_context(Helper("executors", executors_ip, ip, str(payloads.EXECUTORS)))
            while group.known()[0] < payloads.EXECUTORS:
                time.sleep(0.1)
            group.fill()
            groups[shards] = (ip, Threads(group.status()))
        for name, port, request, all_clients in LOADS:
            for clients in all_clients:
                taken: dict[int, list[dict[str, float]]] = {shards: [] for shards in SHARDS}
                for _ in range(ROUNDS):
                    for shards, (ip, threads) in groups.items():
                        threads.take(1)
                        own = time.process_time()
                        measured = load.run(
                            tcp(ip, port),
                            request,
                            clients,
                            seconds,
                            warm_up_s=0.2,
                            succeeded=payloads.succeeded,
                        )
                        if measured.refused:
                            raise RuntimeError(f"{measured.refused} of {measured.sent} calls were refused")
                        taken[shards].append(
                            {
                                "calls_per_s": measured.calls_per_s,
                                "p50_ms": measured.p50_ms,
                                "p99_ms": measured.p99_ms,
                                "load_us": (time.process_time() - own) / measured.sent * 1e6,
                                **threads.take(measured.sent),
                            }
                        )
                for shards in SHARDS:
                    medians = {
                        what: statistics.median(one[what] for one in taken[shards])
                        for what in taken[shards][0]
                    }
                    rows.append({"load": name, "clients": clients, "shards": shards, **medians})
    return rows


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rows = measure(seconds)
    numbers = list(rows[0])[3:]
    print("| load | clients | shards | " + " | ".join(numbers) + " |")
    print("| --- " * (len(numbers) + 3) + "|")
    for row in rows:
        digits = [f"{row[n]:.0f}" if n == "calls_per_s" else f"{row[n]:.2f}" for n in numbers]
        print(f"| {row['load']} | {row['clients']} | {row['shards']} | " + " | ".join(digits) + " |")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    file = results / f"{time.strftime('%Y%m%d-%H%M%S')}-shards.json"
    machine = {"platform": platform.platform(), "cores": os.cpu_count()}
    file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
