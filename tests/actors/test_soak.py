"""An ingress and an executor that much came by hold no more afterwards than before.

`make soak` does the same to a whole group, for longer.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from ray_sched.core.executor import ExecutorRecord
from ray_sched.core.replication import Update
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from tests.actors.test_ingress_loop import CONFIG, Setting
from tests.executor.bench import Bench, chain

ROUNDS = 150
SLACK = 12
"""Files and the like that may be open at one look and not at the other: connections end by themselves."""
MEGABYTES = 30


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grown(rounds: Callable[[int], None], held: Callable[[], dict[str, int]]) -> None:
    """Go through so many rounds twice: the second time may leave no more than the first."""
    for number in range(ROUNDS):
        rounds(number)
    before, before_mb = {**held(), "files": files()}, resident_mb()
    for number in range(ROUNDS, 2 * ROUNDS):
        rounds(number)
    deadline = time.monotonic() + 20.0
    while any(count > before[name] + SLACK for name, count in {**held(), "files": files()}.items()):
        assert time.monotonic() < deadline, f"before: {before}, now: {held()} and {files()} files"
        time.sleep(0.05)
    assert resident_mb() < before_mb + MEGABYTES


def test_executors_dags_clients_and_functions_come_and_go() -> None:
    ingress = Setting(CONFIG.replace(host="127.0.8.23"))
    ingress.lease()

    def update(number: int, function: str, *, exists: bool) -> None:
        """The Policy and the Scheduler tell of an executor that holds the function, and of its DAG."""
        dag = cb.Dag(name=f"d{number}", functions=[cb.Dag.FunctionReference(name=function)])
        ip, tid, now = f"127.0.17.{100 + number % 100}", number % 10, time.monotonic()
        record = ExecutorRecord(ip, tid, False, (function,), (), True, 0.0, now, 0.0, 1)
        told = Update(
            1,
            next(numbers),
            executors=(record,) if exists else (),
            dags={dag.name: dag.SerializeToString() if exists else None},
            sent_at=now + 1000.0,
        )
        ingress.loop.mailbox.put(lambda now: ingress.loop.apply(told, now))

    numbers = itertools.count(1)

    def around(number: int) -> None:
        function = f"f{number}"
        update(number, function, exists=True)
        with ingress.context.socket(zmq.REQ) as client:
            client.linger = 0
            client.rcvtimeo = 10_000
            client.connect(ports.tcp(ingress.host, ports.DAG_CALL))
            response = f"tcp://127.0.17.99:{20_000 + number}"  # the executor's affair alone
            client.send(cb.DagCall(name=f"d{number}", response_address=response).SerializeToString())
            client.recv()
        ingress.ask(
            ports.FUNCTION_CALL, cb.FunctionCall(name=f"never registered {number}").SerializeToString()
        )
        gone = internal_pb2.ThreadStatus(ip=f"127.0.17.{100 + number % 100}", tid=number % 10, running=False)
        ingress.push(ports.STATUS, gone.SerializeToString())
        update(number, function, exists=False)
        ingress.alive()

    def held() -> dict[str, int]:
        loop = ingress.loop
        return {
            "sockets": len(loop.out._sockets),
            "executors": len(loop._table.executors),
            "functions": len(loop._table.functions),
            "plans": len(loop._plans),
            "last calls": len(loop._arrivals._last_call),
            "waiting": len(loop._forwarding),
            "counts": len(loop.counts),
            "mailbox": len(loop.mailbox._items),
        }

    try:
        grown(around, held)
    finally:
        ingress.close()


def test_an_executor_keeps_nothing_of_calls_that_ended(tmp_path: Path) -> None:
    with Bench("127.0.17.30", tmp_path) as bench:
        executor = bench.start()
        bench.register("f", lambda library, *arguments: len(arguments))

        def around(number: int) -> None:
            dag = chain("f", name=f"d{number}")
            # It keeps the last 512 addresses connected.
            bench.call_dag(dag, {"f": 0}, 1, response_address=f"tcp://127.0.17.99:{20_000 + number % 20}")
            bench.trigger(cb.DagTrigger(id=f"orphan {number}", target_function="f", source="BEGIN"), 0)
            bench.pin(f"never registered {number}")
            assert bench.result(bench.call("f", 1, 2)) == 2

        def held() -> dict[str, int]:
            return {
                "waiting": executor._execution.waiting,
                "journal": len(executor._journal),
                "functions": len(executor._functions.names()),
                "answers": len(executor._answers._writes),
                "calls": bench.kvs.stats()["in_flight"],
            }

        grown(around, held)
