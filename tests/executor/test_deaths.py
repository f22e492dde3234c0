"""Functions that hang while they are loaded, or end the whole process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ray_sched.values import to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from tests.executor.bench import Bench, chain, failure, schedule_of

PROGRAM = """
import pickle, sys, threading
from ray_sched.executor.server import ExecutorServer
ExecutorServer(pickle.load(sys.stdin.buffer), 0).start()
threading.Event().wait()
"""
ENDED = ("ERROR: the executor ended while it ran this call", cb.EXECUTION_ERROR)


class Hanging:
    """Its pickle takes a while to load, as an import may."""

    def __reduce__(self) -> tuple[object, ...]:
        return time.sleep, (3.0,)


@contextmanager
def program(bench: Bench, **changes: object) -> Iterator[subprocess.Popen[bytes]]:
    """An executor in a process of its own, once it has told its first status."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(bench.config.replace(**changes)))
        process.stdin.close()
        try:
            bench.scheduler.wait_for("status", timeout_s=30)
            yield process
        finally:
            process.kill()


def test_a_load_that_hangs_refuses_the_pin_and_gives_the_executor_up(bench: Bench) -> None:
    stuck = threading.Event()
    bench.register("hang", Hanging())
    config = bench.config.replace(**{"executor.load_timeout_s": 0.3})
    bench.start(config=config, on_stuck=stuck.set)
    answer = bench.pin("hang")
    assert (answer.success, answer.error) == (False, cb.EXECUTION_ERROR)
    assert stuck.wait(10)


def test_a_call_whose_load_hangs_gives_the_executor_up(bench: Bench) -> None:
    bench.register("hang", Hanging())
    with program(bench, **{"executor.load_timeout_s": 0.3}) as process:
        key = bench.call("hang")
        assert process.wait(20) == 1
    bench.start()
    assert failure(bench.result(key)) == ENDED


def test_what_was_under_way_when_the_process_ended_is_answered_by_the_next(bench: Bench) -> None:
    def end(library):  # type: ignore[no-untyped-def]
        os._exit(3)

    bench.register("end", end)
    bench.register("incr", lambda library, number: number + 1)
    with program(bench) as process:
        assert bench.pin("incr").success
        assert bench.result(bench.call("incr", 1)) == 2
        dag, places = chain("other", "incr"), {"other": 1, "incr": 0}
        bench.schedule(schedule_of(dag, "incr", "waits", bench.ip, places), 0)
        at_address = schedule_of(
            dag, "incr", "direct", bench.ip, places, response_address=bench.answer_address
        )
        bench.schedule(at_address, 0)
        # What came before on the same connection has been taken once this is answered.
        fence = schedule_of(chain("incr"), "incr", "fence", bench.ip, places, (1,))
        bench.schedule(fence, 0)
        bench.trigger(cb.DagTrigger(id="fence", target_function="incr", source="BEGIN"), 0)
        assert bench.result("fence") == 2
        last = cb.FunctionCall(name="end", response_key="last")
        bench.push(ports.CLASSIC.call, last.SerializeToString())
        assert process.wait(20) == 3
    bench.scheduler.clear()
    executor = bench.start()
    assert failure(bench.result("last")) == failure(bench.result("waits")) == ENDED
    assert failure(bench.answers()[0]) == ENDED
    assert executor.status()["recovered"] == 3
    # First it takes back what the process before it held, then it says that it is there.
    assert [(s.running, list(s.functions)) for s in bench.statuses(count=2)] == [(False, []), (True, [])]
    assert bench.result("fence") == 2


def test_a_speculative_branch_that_died_takes_back_no_result(bench: Bench) -> None:
    executor = bench.start()
    dag = chain("slow", "fast")
    dag.functions[1].type = cb.MULTIEXEC
    for call_id in ("answered", "open"):
        bench.schedule(schedule_of(dag, "slow", call_id, bench.ip, {"slow": 0, "fast": 1}), 0)
    bench.kvs.put_bytes("answered", to_value("first").SerializeToString())
    while executor.status()["waiting"] < 2:
        time.sleep(0.001)
    executor.stop()
    assert bench.result("answered") == "first"
    assert failure(bench.result("open")) == ENDED


def test_a_stop_frees_the_ports_while_a_function_runs(bench: Bench) -> None:
    def wait(library):  # type: ignore[no-untyped-def]
        library.put("started", True)
        time.sleep(1.0)

    bench.register("wait", wait)
    first = bench.start()
    key = bench.call("wait")
    bench.result("started")
    first.stop(timeout_s=0.1)
    bench.start()
    assert failure(bench.result(key)) == ENDED


# pytest's hook for threads counts SystemExit, which Python's passes over, as an error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_a_function_starts_may_exit(bench: Bench) -> None:
    def start(library):  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=sys.exit, args=(4,))
        thread.start()
        thread.join()
        return "on"

    bench.register("start", start)
    bench.start()
    assert bench.result(bench.call("start")) == "on"
