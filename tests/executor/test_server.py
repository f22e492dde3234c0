"""An executor thread over its real ports: pins, calls, DAGs, as a scheduler and clients see it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from ray_sched.core.open_calls import OpenCalls
from ray_sched.errors import PortTakenError
from ray_sched.executor import server
from ray_sched.executor.server import ExecutorServer
from ray_sched.kvs.lattices import LWW, MultiCausal, SingleCausal
from ray_sched.reference import CloudburstReference
from ray_sched.values import dumps, error_value, loads, to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal
from ray_sched.wire import ports
from tests.executor.bench import WAIT_S, Bench, chain, failure, is_readable, schedule_of


def incr(library, number):  # type: ignore[no-untyped-def]
    return number + 1


def square(library, number):  # type: ignore[no-untyped-def]
    return number * number


# Pins and statuses.


def test_a_start_is_told_to_the_schedulers(bench: Bench) -> None:
    bench.start(3, gpu=True)
    (status,) = bench.statuses()
    assert status == internal.ThreadStatus(ip=bench.ip, tid=3, running=True, type=internal.GPU)


def test_a_pin_is_answered_by_name_and_told(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start(1)
    assert bench.pin("incr", 1) == cb.GenericResponse(success=True, response_id=f"{bench.ip}:1/incr")
    assert bench.statuses(lambda status: list(status.functions) == ["incr"])


def test_in_cluster_mode_a_second_function_is_refused(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.register("square", square)
    bench.start(config=bench.config.replace(mgmt=bench.ip))
    assert bench.pin("incr").success
    assert not bench.pin("square").success
    assert bench.pin("incr").success
    assert [list(status.functions) for status in bench.statuses(count=4)] == [[], *[["incr"]] * 3]


def test_in_local_mode_several_functions_may_be_pinned(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.register("square", square)
    bench.start()
    assert bench.pin("incr").success
    assert bench.pin("square").success
    assert bench.statuses(lambda status: list(status.functions) == ["incr", "square"])


def test_a_function_that_does_not_exist_is_not_pinned(bench: Bench) -> None:
    bench.start()
    answer = bench.pin("missing")
    assert (answer.success, answer.error) == (False, cb.FUNC_NOT_FOUND)


def test_a_function_that_does_not_load_is_not_pinned(bench: Bench) -> None:
    bench.kvs.put_bytes("funcs/broken", dumps("not a function"))
    bench.start()
    answer = bench.pin("broken")
    assert (answer.success, answer.error) == (False, cb.EXECUTION_ERROR)


def test_an_unpinned_function_is_forgotten(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start(config=bench.config.replace(mgmt=bench.ip))
    bench.pin("incr")
    bench.push(ports.CLASSIC.unpin, b"incr")
    assert [list(status.functions) for status in bench.statuses(count=3)] == [[], ["incr"], []]
    bench.register("square", square)
    assert bench.pin("square").success


def test_statuses_come_each_period_with_the_utilization(bench: Bench) -> None:
    bench.register("wait", lambda library: time.sleep(1.0))
    bench.start(config=bench.config.replace(**{"executor.status_period_s": 0.2}))
    bench.call("wait")
    assert bench.statuses(lambda status: status.utilization > 0.9)


def test_the_management_node_hears_statuses_and_statistics(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start(config=bench.config.replace(mgmt=bench.ip, **{"executor.status_period_s": 0.2}))
    bench.result(bench.call_dag(chain("incr"), {"incr": 0}, 1))
    bench.scheduler.wait_for("mgmt_status")
    (raw,) = bench.scheduler.wait_for("mgmt_statistics", where=bool)
    statistics = internal.ExecutorStatistics.FromString(raw)
    assert [(each.name, each.call_count, len(each.runtime)) for each in statistics.functions] == [
        ("incr", 1, 1)
    ]
    assert [(each.name, len(each.runtimes)) for each in statistics.dags] == [("pipeline", 1)]
    # Each report is of its own period alone.
    reports = bench.scheduler.wait_for("mgmt_statistics", len(bench.scheduler.all("mgmt_statistics")) + 2)
    assert [report for report in reports if report] == [raw]


def test_an_executor_that_departs_finishes_its_queue(bench: Bench) -> None:
    bench.register("incr", incr)
    departed = threading.Event()
    bench.start(config=bench.config.replace(mgmt=bench.ip), on_departed=departed.set)
    dag = chain("incr")
    bench.schedule(schedule_of(dag, "incr", "last", bench.ip, {"incr": 0}, (1,)), 0)
    bench.result(bench.call("incr", 1))
    bench.push(ports.CLASSIC.depart, b"")
    assert bench.statuses(lambda status: not status.running)[0].functions == []
    assert not bench.pin("incr").success
    assert not departed.is_set()
    bench.trigger(cb.DagTrigger(id="last", target_function="incr", source="BEGIN"), 0)
    assert bench.result("last") == 2
    assert departed.wait(10)
    assert bench.scheduler.wait_for("mgmt_depart") == [bench.ip.encode()]


def test_a_thread_id_that_is_taken_is_named(bench: Bench) -> None:
    bench.start(0)
    second = ExecutorServer(bench.config, 0)
    with pytest.raises(PortTakenError, match=f"40.0 of {bench.ip} is taken"):
        second.start()


def test_bytes_that_do_not_parse_are_dropped(bench: Bench) -> None:
    bench.register("incr", incr)
    executor = bench.start()
    for base in (4000, 4020, 4030, 4040):
        bench.push(base, b"\xff")
    bench.push(4010, b"\xff")
    assert bench.result(bench.call("incr", 1)) == 2
    while executor.status()["bad_messages"] < 5:
        assert bench.pin("incr").success


# One-shot calls.


def test_a_call_is_answered_in_the_store(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start(config=bench.config.replace(**{"executor.status_period_s": 600.0}))
    key = bench.call("incr", 41)
    assert bench.result(key) == 42
    assert isinstance(bench.lattice(key), LWW)
    # One at the start, and one that says that it is free again.
    assert len(bench.statuses(count=2)) == 2


def test_a_function_may_be_stored_as_its_bare_pickle(bench: Bench) -> None:
    bench.register_bare("incr", incr)
    bench.start()
    assert bench.result(bench.call("incr", 41)) == 42


def test_an_error_is_answered_as_the_legacy_error_value(bench: Bench) -> None:
    def fail(library):  # type: ignore[no-untyped-def]
        raise ValueError("no luck")

    bench.register("fail", fail)
    bench.start()
    assert failure(bench.result(bench.call("fail"))) == ("ERROR: no luck", cb.EXECUTION_ERROR)
    assert failure(bench.result(bench.call("missing"))) == ("ERROR", cb.FUNC_NOT_FOUND)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
def test_nothing_that_a_function_raises_ends_the_executor(bench: Bench, kind: type[BaseException]) -> None:
    def fail(library):  # type: ignore[no-untyped-def]
        raise kind

    bench.register("fail", fail)
    bench.register("incr", incr)
    bench.start()
    assert failure(bench.result(bench.call("fail"))) == (f"ERROR: {kind.__name__}", cb.EXECUTION_ERROR)
    assert bench.result(bench.call("incr", 1)) == 2


def test_results_and_arguments_that_do_not_pickle_are_errors(bench: Bench) -> None:
    bench.register("lock", lambda library: threading.Lock())
    bench.start()
    text, code = failure(bench.result(bench.call("lock")))
    assert ("pickle" in text, code) == (True, cb.EXECUTION_ERROR)
    call = cb.FunctionCall(name="lock", response_key="broken")
    call.arguments.values.add(body=b"cno.such.module\nname\n.", type=cb.DEFAULT)
    call.arguments.values.add(body=b"\x80\x04\x8c\x0eno_such_module\x8c\x04name\x93.", type=cb.DEFAULT)
    bench.push(ports.CLASSIC.call, call.SerializeToString())
    text, code = failure(bench.result("broken"))
    assert ("no_such_module" in text, code) == (True, cb.EXECUTION_ERROR)


def test_a_class_is_made_once_and_its_run_is_called(bench: Bench) -> None:
    class Counter:
        def __init__(self, library, start):  # type: ignore[no-untyped-def]
            self.where = library.getid()
            self.number = start

        def run(self, library, step):  # type: ignore[no-untyped-def]
            self.number += step
            return self.number, self.where, library.getid()

    bench.register("counter", (Counter, (10,)))
    bench.start(2)
    where = (bench.ip, 2)
    assert bench.pin("counter", 2).success
    assert bench.result(bench.call("counter", 1, tid=2)) == (11, where, where)
    assert bench.result(bench.call("counter", 1, tid=2)) == (12, where, where)


def test_a_function_that_is_registered_again_takes_effect(bench: Bench) -> None:
    bench.register("pinned", lambda library: 1)
    bench.register("cached", lambda library: 1)
    bench.start()
    bench.pin("pinned")
    assert bench.result(bench.call("pinned")) == bench.result(bench.call("cached")) == 1
    bench.register("pinned", lambda library: 2)
    bench.register("cached", lambda library: 2)
    deadline = time.monotonic() + 10
    for name in ("pinned", "cached"):
        while bench.result(bench.call(name)) != 2:
            assert time.monotonic() < deadline


def test_references_are_replaced_by_what_is_stored(bench: Bench) -> None:
    bench.register("join", lambda library, *parts: list(parts))
    bench.start()
    bench.kvs.put_bytes("a", dumps(1))
    bench.kvs.put("b", SingleCausal({"base": 1}, frozenset({dumps("b")})))
    bench.kvs.put("raw", LWW(1, b"\x08\x01 raw"))
    key = bench.call(
        "join",
        CloudburstReference("a", True),
        CloudburstReference("b", True),
        (CloudburstReference("raw", False), 7),
        [CloudburstReference("a", True)],
    )
    assert bench.result(key) == [1, "b", b"\x08\x01 raw", 7, [CloudburstReference("a", True)]]


def test_a_reference_to_a_failed_call_fails_with_what_failed(bench: Bench) -> None:
    bench.register("length", lambda library, value: len(value))
    bench.start()
    bench.kvs.put_bytes("failed", dumps(error_value("division by zero", cb.EXECUTION_ERROR)))
    words, code = failure(bench.result(bench.call("length", CloudburstReference("failed", True))))
    assert words == "ERROR: the argument at key 'failed' failed: division by zero"
    assert code == cb.EXECUTION_ERROR


def test_where_user_code_failed_is_told_to_whoever_asks(bench: Bench) -> None:
    def fail(library):  # type: ignore[no-untyped-def]
        raise ValueError("no luck")

    bench.register("fail", fail)
    executor = bench.start()
    key = bench.call("fail")
    assert failure(bench.result(key))[0] == "ERROR: no luck"
    told = [what for _, what in executor.history.about(key)]
    line = fail.__code__.co_firstlineno + 1
    assert any(what.startswith(f"fail failed: ValueError, at line {line} of ") for what in told), told


def test_a_continuation_that_is_too_large_for_a_scheduler_is_an_error_for_its_caller(bench: Bench) -> None:
    bench.register("large", lambda library, size: "x" * size)
    bench.start(config=bench.config.replace(**{"scheduler.max_message_bytes": 2000}))
    continuation = cb.Continuation(name="next", call=cb.DagCall(response_address=bench.answer_address))
    bench.call_dag(chain("large"), {"large": 0}, 2000, continuation=continuation)
    words, code = failure(bench.answers()[0])
    assert words.startswith("ERROR: a continuation of ") and "(scheduler.max_message_bytes)" in words
    assert code == cb.EXECUTION_ERROR


def test_a_reference_is_waited_for_and_then_given_up(bench: Bench) -> None:
    bench.register("same", lambda library, value: value)
    bench.start(config=bench.config.replace(**{"executor.reference_timeout_s": 1.0}))
    late = bench.call("same", CloudburstReference("late", True))
    bench.kvs.put_bytes("late", dumps("here"))
    assert bench.result(late) == "here"
    text, code = failure(bench.result(bench.call("same", CloudburstReference("never", True))))
    assert ("'never'" in text, code) == (True, cb.EXECUTION_ERROR)


def test_the_library_reads_and_writes_the_store(bench: Bench) -> None:
    def use(library):  # type: ignore[no-untyped-def]
        library.put("k", {"a": 1})
        raw = library.get("k", deserialize=False)
        return [library.get("k"), library.get(["k", "none"]), library.get("none"), type(raw).__name__]

    bench.register("use", use)
    bench.start()
    assert bench.result(bench.call("use")) == [{"a": 1}, {"k": {"a": 1}, "none": None}, None, "bytes"]


def test_functions_send_messages_to_each_other(bench: Bench) -> None:
    def send(library, to, words):  # type: ignore[no-untyped-def]
        library.send(to, words)

    def receive(library):  # type: ignore[no-untyped-def]
        messages = library.recv()
        while not messages:
            messages = library.recv()
        return [*messages, library.recv()]

    bench.register("send", send)
    bench.register("receive", receive)
    bench.start(0)
    bench.start(1)
    received = bench.call("receive", tid=1)
    bench.call("send", [bench.ip, 1], b"hello", tid=0)
    assert bench.result(received) == [((bench.ip, 0), b"hello"), []]


# DAGs.


def test_a_dag_runs_over_three_executors(bench: Bench) -> None:
    for name, function in (("a", incr), ("b", square), ("c", incr)):
        bench.register(name, function)
    for tid in range(3):
        bench.start(tid)
    assert bench.result(bench.call_dag(chain("a", "b", "c"), {"a": 0, "b": 1, "c": 2}, 2)) == 10


def test_a_dag_answers_where_it_is_asked_to(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start()
    dag, places = chain("incr"), {"incr": 0}
    bench.call_dag(dag, places, 1, response_address=bench.answer_address)
    assert bench.answers() == [2]
    bench.call_dag(dag, places, 2, output_key="out")
    assert bench.result("out") == 3


def test_upstream_results_follow_the_arguments_in_the_order_of_the_dag(bench: Bench) -> None:
    bench.register("left", lambda library, number: (number, number + 1))
    bench.register("right", lambda library: [1, 2])
    bench.register("join", lambda library, *values: list(values))
    bench.start()
    dag = cb.Dag(name="diamond")
    for name in ("left", "right", "join"):
        dag.functions.add(name=name)
    dag.connections.add(source="right", sink="join")
    dag.connections.add(source="left", sink="join")
    places = {"left": 0, "right": 0, "join": 0}
    for order in (("left", "right"), ("right", "left")):
        call_id = f"order-{order[0]}"
        for name in ("join", *order):
            bench.schedule(schedule_of(dag, name, call_id, bench.ip, places, (5,)), 0)
        for name in order:
            bench.trigger(cb.DagTrigger(id=call_id, target_function=name, source="BEGIN"), 0)
        assert bench.result(call_id) == [[1, 2], 5, 6]


def test_a_trigger_may_come_before_its_schedule(bench: Bench) -> None:
    bench.register("incr", incr)
    executor = bench.start()
    bench.trigger(cb.DagTrigger(id="early", target_function="incr", source="BEGIN"), 0)
    bench.result(bench.call("incr", 1))
    bench.schedule(schedule_of(chain("incr"), "incr", "early", bench.ip, {"incr": 0}, (1,)), 0)
    assert bench.result("early") == 2
    assert executor.status()["waiting"] == 0


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_whose_trigger_came_during_another_run_waits_for_nobody(bench: Bench, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def hold(library: Any) -> None:
        until(go.exists)

    bench.register("incr", incr)
    bench.register("hold", hold)
    executor = bench.start()
    bench.schedule(schedule_of(chain("incr"), "incr", "late", bench.ip, {"incr": 0}, (1,)), 0)
    until(lambda: executor.open_calls() == OpenCalls([], [("late", ("incr", 0))]))
    held = bench.call("hold")
    until(lambda: held in executor.open_calls().active)
    bench.trigger(cb.DagTrigger(id="late", target_function="incr", source="BEGIN"), 0)
    until(lambda: sorted(executor.open_calls().active) == ["late", held])
    go.touch()
    assert bench.result("late") == 2
    until(lambda: executor.open_calls() == OpenCalls([], []))
    assert not executor._triggers


def test_functions_run_in_one_thread_whoever_received_their_calls(bench: Bench, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def hold(library: Any) -> int:
        until(go.exists)
        return threading.get_ident()

    bench.register("hold", hold)
    bench.register("short", lambda library: threading.get_ident())
    executor = bench.start()
    thread = bench.result(bench.call("short"))
    held = bench.call("hold")
    until(lambda: held in executor.open_calls().active)
    during = bench.call("short")
    until(lambda: during in executor.open_calls().active)
    go.touch()
    assert [bench.result(key) for key in (held, during, bench.call("short"))] == [thread] * 3


@pytest.fixture
def held(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Has an executor run a function until the end, and gives it a call meanwhile that nobody takes in."""
    monkeypatch.setattr(server, "BUSY_S", 60.0)  # nobody stands in
    begun, go = tmp_path / "begun", tmp_path / "go"

    def hold(library: Any) -> None:
        begun.touch()
        until(go.exists)

    def hold_with(executor: ExecutorServer, name: str, *arguments: Any) -> str:
        ports_of_calls = executor._receiver._takers.items()
        (calls,) = [socket for socket, take in ports_of_calls if take == executor._receiver._on_call]
        bench.call("hold")
        until(begun.exists)
        key = bench.call(name, *arguments)
        assert is_readable(int(calls.getsockopt(zmq.FD)))
        return key

    bench.register("hold", hold)
    bench.register("incr", incr)
    hold_with.go = go.touch  # type: ignore[attr-defined]
    yield hold_with
    go.touch()


def test_an_executor_that_departs_runs_what_came_while_it_was_busy(
    bench: Bench, held: Callable[..., str]
) -> None:
    departed = threading.Event()
    config = bench.config.replace(**{"executor.depart_linger_s": 600.0})
    executor = bench.start(config=config, on_departed=departed.set)
    executor.depart()
    bench.statuses(lambda status: not status.running)
    last = held(executor, "incr", 1)
    executor._execution._leaves_at = 0.0
    held.go()  # type: ignore[attr-defined]
    assert bench.result(last) == 2
    assert departed.wait(10)


def test_what_came_while_it_was_busy_is_answered_also_where_it_is_stopped(
    bench: Bench, held: Callable[..., str]
) -> None:
    executor = bench.start()
    last = held(executor, "incr", 1)
    executor.stop(timeout_s=1.0)
    bench.start()
    assert failure(bench.result(last)) == (
        "ERROR: the executor ended while it ran this call",
        cb.EXECUTION_ERROR,
    )


def test_what_else_there_is_to_do_does_not_wait_until_nothing_fails_that_is_received(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = bench.start(config=bench.config.replace(**{"executor.schedule_timeout_s": 0.1}))
    bench.schedule(schedule_of(chain("incr"), "incr", "late", bench.ip, {"incr": 0}, (1,)), 0)
    until(lambda: executor.status()["waiting"] == 1)

    def fail(*arguments: object, **wanted: object) -> None:
        time.sleep(0.01)  # a call that comes at such a rate, and cannot be noted
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(executor._receiver, "receive", fail)
        until(lambda: executor.status()["expired"] == 1)


def test_an_executor_that_takes_nothing_in_may_have_any_trigger_in_its_socket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register("incr", incr)
    executor = bench.start()
    bench.schedule(schedule_of(chain("incr"), "incr", "full", bench.ip, {"incr": 0}, (1,)), 0)
    until(lambda: executor.open_calls() == OpenCalls([], [("full", ("incr", 0))]))
    with monkeypatch.context() as patch:
        patch.setattr(server, "QUEUE_LIMIT", -1)
        until(lambda: executor.open_calls() == OpenCalls(["full"], [], more=True))
    until(lambda: executor.open_calls() == OpenCalls([], [("full", ("incr", 0))]))


def test_a_sink_with_a_continuation_hands_it_to_a_scheduler(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start()
    continuation = cb.Continuation(name="next", call=cb.DagCall(output_key="end"))
    call_id = bench.call_dag(chain("incr"), {"incr": 0}, 1, continuation=continuation)
    (raw,) = bench.scheduler.wait_for("continuation")
    sent = cb.Continuation.FromString(raw)
    assert (sent.name, sent.id, loads(sent.result), sent.call.output_key) == ("next", call_id, 2, "end")


def test_an_error_answers_the_call_at_once_and_goes_no_further(bench: Bench) -> None:
    bench.register("a", lambda library: 1 / 0)
    bench.register("b", incr)
    bench.register("incr", incr)
    bench.start(0)
    downstream = bench.start(1)
    dag, places = chain("a", "b"), {"a": 0, "b": 1}
    assert failure(bench.result(bench.call_dag(dag, places)))[1] == cb.EXECUTION_ERROR
    bench.call_dag(dag, places, response_address=bench.answer_address)
    assert failure(bench.answers()[0]) == ("ERROR: division by zero", cb.EXECUTION_ERROR)
    continuation = cb.Continuation(name="next", call=cb.DagCall(response_address=bench.answer_address))
    bench.call_dag(dag, places, continuation=continuation)
    assert failure(bench.answers(2)[1])[0] == "ERROR: division by zero"
    bench.result(bench.call("incr", 1, tid=1))
    assert downstream.status()["dag_runs"] == 0
    assert bench.scheduler.all("continuation") == []


def test_a_dag_function_that_does_not_exist_is_an_error(bench: Bench) -> None:
    bench.start()
    result = bench.result(bench.call_dag(chain("missing"), {"missing": 0}))
    assert failure(result) == ("ERROR", cb.FUNC_NOT_FOUND)


def test_a_schedule_without_a_place_for_the_next_function_is_an_error(bench: Bench) -> None:
    bench.register("a", incr)
    bench.start()
    text, code = failure(bench.result(bench.call_dag(chain("a", "b"), {"a": 0}, 1)))
    assert ("'b'" in text, code) == (True, cb.EXECUTION_ERROR)


def test_multiexec_runs_for_each_trigger_until_a_result_counts(bench: Bench) -> None:
    bench.register("same", lambda library, value: value)
    bench.start()
    dag = chain("x", "same")
    dag.functions[1].type = cb.MULTIEXEC
    dag.functions[1].invalid_results.append(dumps(0))
    bench.schedule(schedule_of(dag, "same", "multi", bench.ip, {"same": 0}), 0)
    for value in (0, 0, 5, 6):
        trigger = cb.DagTrigger(id="multi", target_function="same", source=f"x{value}")
        trigger.arguments.values.append(to_value(value))
        bench.trigger(trigger, 0)
    assert bench.result("multi") == 5
    bench.result(bench.call("same", 1))
    assert bench.result("multi") == 5


def test_a_batching_function_gets_many_requests_at_once(bench: Bench) -> None:
    def add(library, left, right):  # type: ignore[no-untyped-def]
        return [(a + b, len(left)) for a, b in zip(left, right, strict=True)]

    bench.register("add", add)
    bench.register("wait", lambda library: time.sleep(0.3))
    bench.start(config=bench.config.replace(**{"executor.batch_size": 4}))
    bench.pin("add", batching=True)
    waiting = bench.call("wait")
    calls = [bench.call_dag(chain("add"), {"add": 0}, number, 10) for number in range(6)]
    bench.result(waiting)
    results = [bench.result(call_id) for call_id in calls]
    assert [total for total, _ in results] == [10, 11, 12, 13, 14, 15]
    sizes = [size for _, size in results]
    assert max(sizes) > 1
    assert max(sizes) <= 4


def test_an_error_in_a_batch_is_the_answer_to_each_of_its_requests(bench: Bench) -> None:
    bench.register("bad", lambda library, numbers: [1 / number for number in numbers])
    bench.start()
    bench.pin("bad", batching=True)
    calls = [bench.call_dag(chain("bad"), {"bad": 0}, 0) for _ in range(3)]
    assert {failure(bench.result(call_id))[0] for call_id in calls} == {"ERROR: division by zero"}


def test_a_schedule_that_gets_no_trigger_is_answered_with_an_error(bench: Bench) -> None:
    bench.register("incr", incr)
    timeouts = {"executor.schedule_timeout_s": 0.1}
    executor = bench.start(config=bench.config.replace(**timeouts))
    bench.kvs.put_bytes("answered", dumps("before"))
    dag = chain("a", "incr")
    for call_id in ("answered", "lost"):
        bench.schedule(schedule_of(dag, "incr", call_id, bench.ip, {"incr": 0}), 0)
    text, code = failure(bench.result("lost"))
    assert ("'a'" in text, code) == (True, cb.EXECUTION_ERROR)
    assert bench.result("answered") == "before"
    assert executor.status()["expired"] == 2


# Causal consistency.


def test_causal_results_carry_what_they_depend_on(bench: Bench) -> None:
    bench.kvs.put("funcs/same", SingleCausal({"base": 1}, frozenset({dumps(lambda library, value: value)})))
    bench.kvs.put("k", SingleCausal({"w": 3}, frozenset({dumps("b"), dumps("a")})))
    bench.register("last", lambda library, value: value)
    bench.start(0)
    bench.start(1)
    dag, places = chain("same", "last"), {"same": 0, "last": 1}
    fields = {"consistency": cb.MULTI, "client_id": "me", "output_key": "out"}
    bench.call_dag(dag, places, CloudburstReference("k", True), **fields)
    lattice = bench.lattice("out")
    assert isinstance(lattice, MultiCausal)
    assert lattice == MultiCausal({"me": 1}, {"k": {"w": 3}}, frozenset({dumps("a")}))


def test_a_causal_call_is_stored_as_a_causal_lattice(bench: Bench) -> None:
    bench.register("incr", incr)
    bench.start()
    lattice = bench.lattice(bench.call("incr", 1, consistency=cb.SINGLE))
    assert lattice == MultiCausal({"base": 1}, {}, frozenset({dumps(2)}))
