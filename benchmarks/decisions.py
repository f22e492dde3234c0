"""What a call costs from its request's bytes to the messages for its executors, without a socket.

    python -m benchmarks.decisions

prints microseconds a call, the least of many short runs of all kinds in turns.
"""

from __future__ import annotations

import random
import sys
import timeit
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks import payloads
from ray_sched.config import PolicyConfig
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import plan_of
from ray_sched.core.destination import of_one_shot, without_continuation
from ray_sched.core.dispatch import Dispatcher
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import load_policy
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import accepted, parse

LENGTHS: Final = (1, 3, 10)
EXECUTORS: Final = 3
CALLS: Final = 200
RUNS: Final = 60


def main() -> None:
    names = [f"f{number}" for number in range(max(LENGTHS))]
    policy = PolicyConfig(max_recent_calls=0)
    table = ExecutorTable(policy, local=True, pin_grace_s=1.0, executor_timeout_s=1e9)
    for tid in range(EXECUTORS):
        table.on_status(Status("10.0.0.1", tid, tuple(names)), 0.0)
    plans = {f"{length}": plan_of(payloads.chain_of(f"{length}", names[:length])) for length in LENGTHS}
    dispatcher = Dispatcher(table, plans, load_policy(policy), random.Random(1), Arrivals())
    one_shot = cb.FunctionCall(name="f0").SerializeToString()

    def call() -> bytes:
        asked = parse(cb.FunctionCall, one_shot)
        response_id, _ = dispatcher.call(asked, 1.0)
        of_one_shot(asked, response_id)
        return accepted(response_id)

    def call_dag(request: bytes) -> bytes:
        asked = parse(cb.DagCall, request)
        response_id, _ = dispatcher.call_dag(asked, 1.0, 1.6e9)
        without_continuation(asked, response_id)
        return accepted(response_id)

    kinds: dict[str, Callable[[], object]] = {"one-shot": call}
    for length in LENGTHS:
        request = cb.DagCall(name=f"{length}").SerializeToString()
        kinds[f"chain of {length}"] = partial(call_dag, request)
    runs = [{name: timeit.timeit(kind, number=CALLS) for name, kind in kinds.items()} for _ in range(RUNS)]
    for name in kinds:
        sys.stdout.write(f"{name:12} {min(run[name] for run in runs) / CALLS * 1e6:6.2f} us\n")


if __name__ == "__main__":
    main()
