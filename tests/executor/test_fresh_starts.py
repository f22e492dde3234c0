"""What a peer cannot tell from a restart: legacy executors end with an unpin, and are started anew."""

from __future__ import annotations

import time

from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from tests.executor.bench import Bench, chain, failure, schedule_of


class Counter:
    def __init__(self, library: object, start: int) -> None:
        self.number = start

    def run(self, library: object) -> int:
        self.number += 1
        return self.number


def test_an_unpinned_function_leaves_no_state(bench: Bench) -> None:
    bench.register("counter", (Counter, (10,)))
    bench.start()
    assert bench.pin("counter").success
    assert [bench.result(bench.call("counter")) for _ in range(2)] == [11, 12]
    bench.scheduler.clear()
    bench.push(ports.CLASSIC.unpin, b"counter")
    bench.statuses(lambda status: not status.functions)
    assert bench.result(bench.call("counter")) == 11


def test_a_pin_takes_the_function_as_it_is_registered_now(bench: Bench) -> None:
    bench.start(config=bench.config.replace(**{"executor.reload_period_s": 600.0}))
    bench.register("f", lambda library: "old")
    assert bench.result(bench.call("f")) == "old"
    bench.register("f", lambda library: "new")
    assert bench.result(bench.call("f")) == "old", "it is looked up again before the period is over"
    assert bench.pin("f").success
    assert bench.result(bench.call("f")) == "new"


def test_messages_that_a_call_did_not_take_are_not_the_next_ones(bench: Bench) -> None:
    def leaves_one(library):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 10
        while not library._inbox and time.monotonic() < deadline:
            time.sleep(0.001)
        return len(library._inbox)

    bench.register("leaves_one", leaves_one)
    bench.register("receive", lambda library: library.recv())
    bench.register("send", lambda library, to: library.send(to, b"not taken"))
    bench.start(0)
    bench.start(1)
    left = bench.call("leaves_one", tid=1)
    bench.call("send", [bench.ip, 1], tid=0)
    assert bench.result(left) == 1
    assert bench.result(bench.call("receive", tid=1)) == []


def test_a_source_that_is_never_triggered_answers_its_address(bench: Bench) -> None:
    bench.register("f", lambda library: 1)
    bench.start(config=bench.config.replace(**{"executor.schedule_timeout_s": 0.1}))
    lost = schedule_of(chain("f"), "f", "lost", bench.ip, {"f": 0}, response_address=bench.answer_address)
    bench.schedule(lost, 0)
    text, code = failure(bench.answers()[0])
    assert ("'BEGIN'" in text, code) == (True, cb.EXECUTION_ERROR)
