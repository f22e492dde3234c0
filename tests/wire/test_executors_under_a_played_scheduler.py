"""Our executors under another scheduler: everything that tells them what to do is made by hand here.

The tests share two executor threads in cluster mode; the last one sends the second of them away.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from tests.wire.conftest import Scheduler
from tests.wire.players import (
    AnnaClient,
    Mailbox,
    PlayedManagement,
    PlayedScheduler,
    PlayedSink,
    Pusher,
    Record,
    dag,
    decode,
    encode,
    messages,
    ports,
    until,
)

pytestmark = pytest.mark.cluster

SCHEDULER_IP = "127.0.9.60"
USER_TID = 3
"""The thread id under which the tests take user messages."""


def pickled(value: Any) -> dict[str, Any]:
    return {"body": pickle.dumps(value, protocol=4), "type": messages.DEFAULT}


def plain(value: Record) -> Any:
    return value.body.decode() if value.type == messages.STRING else pickle.loads(value.body)


class Deployment:
    """The other scheduler and the store, with which one test works; `close` unpins what it pinned."""

    def __init__(self, lent: Scheduler) -> None:
        self.ip, self.layout = lent.ip, lent.layout
        self.pusher = Pusher()
        self.scheduler = PlayedScheduler(SCHEDULER_IP, lent.ip, self.pusher, layout=lent.layout)
        self.anna = AnnaClient(lent.ip, SCHEDULER_IP, self.pusher)
        self._pinned: dict[int, str] = {}
        self._word = f"t{uuid.uuid4().hex[:8]}_"

    def name(self, word: str) -> str:
        """A name that no other test uses."""
        return self._word + word

    def function(self, word: str, function: Callable[..., Any]) -> str:
        """Store a function as a scheduler does; returns its name."""
        name = self.name(word)
        stored = {"timestamp": int(time.time() * 10), "value": cloudpickle.dumps(function)}
        answer = self.anna.put(f"funcs/{name}", messages.LWW, encode(messages.LWW_VALUE, stored))
        assert answer.error == messages.NO_ERROR
        return name

    def pin(self, tid: int, name: str, *, batching: bool = False) -> None:
        self._pinned[tid] = name
        answer = self.scheduler.pin(tid, name, batching=batching)
        assert (answer.success, answer.error) == (True, messages.NO_CLOUDBURST_ERROR)
        self.scheduler.wait_for_status(tid, lambda status: status.functions == [name])

    def unpin(self, tid: int) -> None:
        """Unpin what the test pinned on that thread, which then tells that it is free."""
        told = len(self.scheduler.statuses(tid))
        self.scheduler.unpin(tid, self._pinned.pop(tid))

        def freed() -> bool:
            return any(not status.functions for status in self.scheduler.statuses(tid)[told:])

        until(freed, f"thread {tid} was not freed")

    def schedule(self, tid: int, function: str, **fields: Any) -> str:
        """Schedule a call of a DAG of this function alone; returns its id."""
        call_id = self.name(uuid.uuid4().hex)
        whole = {
            "id": call_id,
            "dag": dag(self.name("dag"), [function]),
            "target_function": function,
            "triggers": ["BEGIN"],
            "locations": {function: f"{self.ip}:{tid}"},
            "start_time": time.time(),
            **fields,
        }
        self.scheduler.schedule(tid, **whole)
        return call_id

    def stored(self, key: str) -> Any:
        return plain(decode(messages.VALUE, self.anna.wait_for_lww(key)))

    def close(self) -> None:
        try:
            for tid in list(self._pinned):
                self.unpin(tid)
        finally:
            self.scheduler.close()
            self.anna.close()
            self.pusher.close()


@pytest.fixture
def deployment(lent: Scheduler) -> Iterator[Deployment]:
    deployment = Deployment(lent)
    try:
        yield deployment
    finally:
        deployment.close()


@pytest.fixture
def scheduler(deployment: Deployment) -> PlayedScheduler:
    return deployment.scheduler


@pytest.fixture
def management(lent: Scheduler) -> PlayedManagement:
    assert lent.management is not None
    return lent.management


@pytest.fixture
def sink() -> Iterator[PlayedSink]:
    sink = PlayedSink(SCHEDULER_IP)
    yield sink
    sink.close()


@pytest.fixture
def messages_of_users() -> Iterator[Mailbox]:
    with Mailbox({"message": ports.tcp(SCHEDULER_IP, ports.WIDE.user_message + USER_TID)}) as mailbox:
        yield mailbox


def waits_for_word(cloudburst: Any) -> Any:
    """Says that it runs, and returns the messages that it then gets, once there are some."""
    cloudburst.send((SCHEDULER_IP, USER_TID), b"here I am")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        received = cloudburst.recv()
        if received:
            return received
        time.sleep(0.005)
    return "nothing came"


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """So that an executor need not have this module."""
    function.__module__ = "__main__"
    return function


# --- pins ---


def test_a_pin_is_answered_and_told(deployment: Deployment, scheduler: PlayedScheduler) -> None:
    name = deployment.function("incr", lambda cloudburst, x: x + 1)
    deployment.pin(0, name)
    status = scheduler.wait_for_status(0, lambda status: status.functions == [name])
    assert status == {
        "ip": deployment.ip,
        "tid": 0,
        "functions": [name],
        "utilization": status.utilization,
        "running": True,
        "type": messages.CPU,
    }


def test_a_second_pin_is_rejected_in_cluster_mode(deployment: Deployment, scheduler: PlayedScheduler) -> None:
    first = deployment.function("first", lambda cloudburst: 1)
    second = deployment.function("second", lambda cloudburst: 2)
    deployment.pin(0, first)
    told = len(scheduler.statuses(0))
    assert not scheduler.pin(0, second).success
    until(lambda: len(scheduler.statuses(0)) > told, "no status followed")
    assert {tuple(status.functions) for status in scheduler.statuses(0)[told:]} == {(first,)}
    # The other thread has room, and so has this one again after an unpin.
    deployment.pin(1, second)
    deployment.unpin(0)
    deployment.pin(0, second)


def test_a_pin_of_an_unknown_function_is_rejected(deployment: Deployment, scheduler: PlayedScheduler) -> None:
    answer = scheduler.pin(0, deployment.name("unknown"))
    assert (answer.success, answer.error) == (False, messages.FUNC_NOT_FOUND)


# --- calls ---


def test_a_one_shot_call_leaves_its_result_and_a_status(
    deployment: Deployment, scheduler: PlayedScheduler, management: PlayedManagement
) -> None:
    name = deployment.function("incr", lambda cloudburst, x: x + 1)

    def told_of_its_own_accord() -> int:
        # Those of each period go to the management node, too.
        to_it = [decode(messages.THREAD_STATUS, raw) for raw in management.mailbox.all("status")]
        return len(scheduler.statuses(0)) - len([status for status in to_it if status.tid == 0])

    management.mailbox.clear()
    before = told_of_its_own_accord()
    for number in range(3):
        key = deployment.name(f"key{number}")
        scheduler.call(0, name, key, pickled(number))
        assert deployment.stored(key) == number + 1
    until(lambda: told_of_its_own_accord() >= before + 3, "no status followed a call")


def test_a_schedule_comes_before_its_trigger(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink
) -> None:
    name = deployment.function("sum", lambda cloudburst, *x: sum(x))
    deployment.pin(0, name)
    own = {name: {"values": [pickled(40)]}}
    call_id = deployment.schedule(0, name, arguments=own, response_address=sink.address)
    scheduler.trigger(0, call_id, name, pickled(2))
    assert [plain(value) for value in sink.wait_for()] == [42]


def test_a_trigger_comes_before_its_schedule(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink
) -> None:
    name = deployment.function("double", lambda cloudburst, x: 2 * x)
    deployment.pin(0, name)
    call_id = deployment.name("call")
    scheduler.trigger(0, call_id, name, pickled(21))
    # Triggers arrive in their order: once the second has led to something, the first is there.
    second = deployment.schedule(0, name, response_address=sink.address)
    scheduler.trigger(0, second, name, pickled(1))
    assert [plain(value) for value in sink.wait_for()] == [2]
    deployment.schedule(0, name, id=call_id, response_address=sink.address)
    assert [plain(value) for value in sink.wait_for(2)] == [2, 42]


def test_executors_trigger_each_other_as_the_schedule_says(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink
) -> None:
    incr = deployment.function("incr", lambda cloudburst, x: x + 1)
    text = deployment.function("text", lambda cloudburst, x: f"é{x}")
    deployment.pin(0, incr)
    deployment.pin(1, text)
    call_id = deployment.name("call")
    whole = {
        "id": call_id,
        "dag": dag(deployment.name("dag"), [incr, text], [(incr, text)]),
        "locations": {incr: f"{deployment.ip}:0", text: f"{deployment.ip}:1"},
        "arguments": {incr: {"values": [pickled(41)]}},
        "response_address": sink.address,
        "start_time": time.time(),
    }
    scheduler.schedule(0, **whole, target_function=incr, triggers=["BEGIN"])
    scheduler.schedule(1, **whole, target_function=text, triggers=[incr])
    scheduler.trigger(0, call_id, incr)
    assert sink.wait_for() == [{"body": "é42".encode(), "type": messages.STRING}]


@pytest.mark.parametrize("names_key", [True, False], ids=["output key", "id"])
def test_a_sink_stores_its_result(
    deployment: Deployment, scheduler: PlayedScheduler, names_key: bool
) -> None:
    name = deployment.function("incr", lambda cloudburst, x: x + 1)
    deployment.pin(0, name)
    key = deployment.name("out") if names_key else ""
    call_id = deployment.schedule(0, name, output_key=key)
    scheduler.trigger(0, call_id, name, pickled(41))
    assert deployment.stored(key or call_id) == 42


def test_a_sink_hands_a_continuation_to_the_scheduler(
    deployment: Deployment, scheduler: PlayedScheduler
) -> None:
    name = deployment.function("incr", lambda cloudburst, x: x + 1)
    deployment.pin(0, name)
    following = {
        "name": "next",
        "call": {"name": "next", "output_key": "final", "function_args": {"n": {"values": [pickled(1)]}}},
    }
    call_id = deployment.schedule(0, name, continuation=following)
    scheduler.trigger(0, call_id, name, pickled(41))
    [raw] = scheduler.mailbox.wait_for("continuation")
    continuation = decode(messages.CONTINUATION, raw)
    assert plain(decode(messages.VALUE, continuation.result)) == 42
    sent = {**following, "id": call_id, "result": continuation.result}
    assert continuation == decode(messages.CONTINUATION, encode(messages.CONTINUATION, sent))


def test_a_function_that_raises_answers_the_error_value_and_the_next_call_is_served(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink
) -> None:
    name = deployment.function("inverse", lambda cloudburst, x: 1 / x)
    deployment.pin(0, name)
    for divisor in (0, 4):
        call_id = deployment.schedule(0, name, response_address=sink.address)
        scheduler.trigger(0, call_id, name, pickled(divisor))
        sink.wait_for(1 if divisor == 0 else 2)
    refused, answered = [plain(value) for value in sink.wait_for(2)]
    assert refused[0].startswith("ERROR")
    assert refused[1] == encode(messages.GENERIC_RESPONSE, {"error": messages.EXECUTION_ERROR})
    assert answered == 0.25


def test_multiexec_drops_invalid_results_and_keeps_the_schedule(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink
) -> None:
    name = deployment.function("same", lambda cloudburst, x: x)
    deployment.pin(0, name)
    invalid = [{"body": b"nothing", "type": messages.STRING}, pickled(None)]
    reference = {
        "name": name,
        "type": messages.MULTIEXEC,
        "invalid_results": [encode(messages.VALUE, value) for value in invalid],
    }
    call_id = deployment.schedule(
        0,
        name,
        dag=dag(deployment.name("dag"), ["a", "b", "c", reference], [(s, name) for s in "abc"]),
        triggers=["a", "b", "c"],
        response_address=sink.address,
    )
    for source, value in zip("abc", [*invalid, pickled("something")], strict=True):
        scheduler.trigger(0, call_id, name, value, source=source)
    # Triggers come in their order: had an invalid result been sent, it would be here first.
    assert [plain(value) for value in sink.wait_for()] == ["something"]


def test_a_batching_function_is_handed_up_to_twenty_requests(
    deployment: Deployment, scheduler: PlayedScheduler, sink: PlayedSink, messages_of_users: Mailbox
) -> None:
    name = deployment.function("sizes", lambda cloudburst, xs: [(len(xs), 2 * x) for x in xs])
    busy = deployment.function("busy", by_value(waits_for_word))
    deployment.pin(0, name, batching=True)
    scheduler.call(0, busy, deployment.name("busy result"))
    messages_of_users.wait_for("message")
    for number in range(60):
        call_id = deployment.schedule(0, name, response_address=sink.address)
        scheduler.trigger(0, call_id, name, pickled(number))
    scheduler.push("user_message", 0, pickle.dumps(((SCHEDULER_IP, USER_TID), b"go on")))
    results = [plain(value) for value in sink.wait_for(60)]
    # The executor triggers nobody here: a tuple is a result as any other.
    assert sorted(doubled for _, doubled in results) == [2 * number for number in range(60)]
    assert 1 < max(size for size, _ in results) <= 20


# --- messages between functions ---


def test_functions_exchange_messages_with_threads_elsewhere(
    deployment: Deployment, scheduler: PlayedScheduler, messages_of_users: Mailbox
) -> None:
    name = deployment.function("waits", by_value(waits_for_word))
    key = deployment.name("key")
    scheduler.call(1, name, key)
    [raw] = messages_of_users.wait_for("message")
    assert pickle.loads(raw) == ((deployment.ip, 1), b"here I am")
    scheduler.push("user_message", 1, pickle.dumps((("10.1.2.3", 7), b"hello"), protocol=2))
    assert deployment.stored(key) == [(("10.1.2.3", 7), b"hello")]


# --- what they tell the management node ---


def test_the_management_node_gets_statuses_and_statistics(
    deployment: Deployment, scheduler: PlayedScheduler, management: PlayedManagement, sink: PlayedSink
) -> None:
    name = deployment.function("incr", lambda cloudburst, x: x + 1)
    deployment.pin(0, name)
    whole = {"dag": dag(deployment.name("dag"), [name]), "response_address": sink.address}
    for number in range(3):
        call_id = deployment.schedule(0, name, **whole)
        scheduler.trigger(0, call_id, name, pickled(number))
    sink.wait_for(3)
    status = management.wait_for_status(where=lambda status: status.functions == [name])
    assert (status.ip, status.tid, status.running) == (deployment.ip, 0, True)
    assert 0 <= status.utilization <= 1

    def reported() -> bool:
        reports = management.wait_for_statistics()
        functions = [entry for report in reports for entry in report.functions if entry.name == name]
        dags = [entry for report in reports for entry in report.dags if entry.name == deployment.name("dag")]
        runs = [runtime for entry in functions for runtime in entry.runtime]
        ends = [runtime for entry in dags for runtime in entry.runtimes]
        assert all(runtime >= 0 for runtime in runs + ends)
        counted: int = sum(entry.call_count for entry in functions)
        return counted == len(runs) == len(ends) == 3

    until(reported, "the runs were not reported")


# --- leaving ---


def test_a_departing_executor_finishes_its_queue_tells_it_and_leaves(
    deployment: Deployment,
    scheduler: PlayedScheduler,
    management: PlayedManagement,
    messages_of_users: Mailbox,
) -> None:
    busy = deployment.function("busy", by_value(waits_for_word))
    incr = deployment.function("incr", lambda cloudburst, x: x + 1)
    keys = [deployment.name(word) for word in ("running", "queued")]
    scheduler.call(1, busy, keys[0])
    messages_of_users.wait_for("message")
    scheduler.call(1, incr, keys[1], pickled(41))
    scheduler.push("depart", 1, b"")
    scheduler.push("user_message", 1, pickle.dumps(((SCHEDULER_IP, USER_TID), b"go on")))
    assert deployment.stored(keys[0]) == [((SCHEDULER_IP, USER_TID), b"go on")]
    assert deployment.stored(keys[1]) == 42
    status = scheduler.wait_for_status(1, lambda status: not status.running)
    assert (status.ip, status.functions) == (deployment.ip, [])
    assert management.mailbox.wait_for("depart") == [deployment.ip.encode()]

    def is_free() -> bool:
        try:
            Mailbox({"pin": ports.tcp(deployment.ip, deployment.layout.pin + 1)}).close()
        except OSError:
            return False
        return True

    until(is_free, "its ports were not freed")
    # Its neighbour stays.
    key = deployment.name("neighbour")
    scheduler.call(0, incr, key, pickled(1))
    assert deployment.stored(key) == 2
