"""Everything once: start a cluster on this machine, run functions and a DAG in every way there is, stop it.

    python examples/demo.py [HOST]

HOST is the address to use, 127.0.0.1 if none is given. Exits with 0 when every value was right.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import ray

import ray_sched

RAY_SCHED = [sys.executable, "-m", "ray_sched.cli"]
TIMEOUT_S = 30.0


def check(what: str, got: Any, expected: Any) -> None:
    print(f"  {what:<52} {got!r}")
    if got != expected:
        raise SystemExit(f"demo: {what} gave {got!r}, not {expected!r}")


def run_jobs(host: str) -> None:
    with ray_sched.connect(host) as client:
        print("\nFunctions, over ZeroMQ:")
        # The first argument of every function is the user library: get, put, send, recv.
        incr = client.register(lambda _, x: x + 1, "incr")
        square = client.register(lambda _, x: x * x, "square")
        check("registered", sorted(client.list()), ["incr", "square"])
        check("incr(41)", incr(41).get(timeout_s=TIMEOUT_S), 42)
        check("square(12)", square(12).get(timeout_s=TIMEOUT_S), 144)

        print("\nA DAG of them, incr -> square:")
        client.register_dag("pipeline", ["incr", "square"], [("incr", "square")])
        try:
            stored = client.call_dag("pipeline", {"incr": [1]})
            check("pipeline(1), result through the key-value store", stored.get(timeout_s=TIMEOUT_S), 4)
            direct = client.call_dag("pipeline", {"incr": [2]}, direct_response=True)
            check("pipeline(2), result sent straight back", direct.get(timeout_s=TIMEOUT_S), 9)

            print("\nThe same DAG by the Scheduler's Ray actor handle, without ZeroMQ:")
            scheduler = ray_sched.get_scheduler(group=host)
            result = ray.get(scheduler.call_dag.remote("pipeline", {"incr": [3]}), timeout=TIMEOUT_S)
            check('ray.get(scheduler.call_dag.remote("pipeline", ...))', result, 16)
        finally:
            client.delete_dag("pipeline")
        print("\nThe DAG is deleted.")


def main(host: str) -> int:
    print(f"Starting Ray, the scheduler group, the key-value store and executors on {host}:", flush=True)
    up = subprocess.Popen([*RAY_SCHED, "up", "--host", host, "--detach"])
    try:
        code = up.wait()
    except KeyboardInterrupt:
        # It stops what it has started so far.
        up.terminate()
        up.wait()
        raise
    if code:
        return code
    try:
        run_jobs(host)
    finally:
        ray.shutdown()
        subprocess.run([*RAY_SCHED, "down", "--host", host], check=True)
    print("All values are right.")
    return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"))
    except KeyboardInterrupt:
        sys.exit(130)
