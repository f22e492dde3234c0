"""The ingress's messages to executors: kept until the turn's end, then sent in order, or counted as lost."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ray_sched.actors.front import Outbox
from ray_sched.core.dispatch import SCHEDULE, TRIGGER
from ray_sched.core.executor import Address, Executor
from ray_sched.wire import ports
from ray_sched.wire.ports import CLASSIC, tcp
from ray_sched.wire.sockets import MAX_LINGERING, PushSockets, batching_context

HOST = "127.0.12.11"
WAIT_MS = 10_000


class Setting:
    def __init__(self) -> None:
        self.context = batching_context()
        self.sockets: list[zmq.Socket[bytes]] = []
        self.unsendable: list[Address] = []
        self.dropped: Counter[str] = Counter()
        self.out = Outbox(
            self.context, CLASSIC, self.unsendable.append, lambda what, why: self.dropped.update([what])
        )

    def executor(self, kind: str, tid: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(zmq.PULL)
        socket.bind(tcp(HOST, getattr(CLASSIC, kind) + tid))
        socket.rcvtimeo = WAIT_MS
        self.sockets.append(socket)
        return socket

    def close(self) -> None:
        self.out.close()
        for socket in self.sockets:
            socket.close(0)
        self.context.destroy(0)


@pytest.fixture
def setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


def test_each_executor_gets_its_messages_in_order(setting: Setting) -> None:
    sockets = {tid: setting.executor("schedule", tid) for tid in (0, 1)}
    for number in range(100):
        setting.out.put((HOST, number % 2), "schedule", b"%d" % number)
    setting.out.put_all([(HOST, 0, "schedule", b"last")])
    setting.out.flush()
    for tid, socket in sockets.items():
        assert [int(socket.recv()) for _ in range(50)] == list(range(tid, 100, 2))
    assert sockets[0].recv() == b"last"
    assert not setting.dropped


def test_what_calls_send_goes_in_order(setting: Setting) -> None:
    executor = Executor(HOST, 2)
    schedules, triggers = setting.executor("schedule", 2), setting.executor("trigger", 2)
    for number in range(50):
        body = b"%d" % number
        setting.out.put_calls([(executor, TRIGGER, body), (executor, SCHEDULE, body)])
    setting.out.flush()
    for socket in (schedules, triggers):
        assert [int(socket.recv()) for _ in range(50)] == list(range(50))


def test_nothing_goes_before_the_flush_and_nothing_goes_twice(setting: Setting) -> None:
    socket = setting.executor("trigger", 0)
    setting.out.put((HOST, 0), "trigger", b"first")
    assert not socket.poll(50)
    setting.out.flush()
    setting.out.flush()
    setting.out.put((HOST, 0), "trigger", b"second")
    setting.out.flush()
    assert [socket.recv(), socket.recv()] == [b"first", b"second"]
    assert not socket.poll(50)


def test_what_finds_no_room_is_counted_and_its_executor_named(setting: Setting) -> None:
    """Nobody listens at that port: the socket takes so many messages and no more."""
    for _ in range(10_003):
        setting.out.put((HOST, 5), "call", b"")
    setting.out.flush()
    assert setting.dropped == {"send": 3}
    assert setting.unsendable == [(HOST, 5)] * 3


def test_an_address_that_is_none_costs_its_own_messages_alone(setting: Setting) -> None:
    socket = setting.executor("pin", 1)
    setting.out.put(("not an address", 0), "pin", b"lost")
    setting.out.put((HOST, 1), "pin", b"kept")
    setting.out.flush()
    assert socket.recv() == b"kept"
    assert setting.dropped == {"send": 1}
    assert setting.unsendable == [("not an address", 0)]


def test_every_kind_of_message_has_its_port(setting: Setting) -> None:
    kinds = ("pin", "unpin", "call", "schedule", "trigger", "depart")
    sockets = {kind: setting.executor(kind, 0) for kind in kinds}
    for kind in kinds:
        setting.out.put((HOST, 0), kind, kind.encode())
    setting.out.flush()
    assert {kind: socket.recv().decode() for kind, socket in sockets.items()} == {
        kind: kind for kind in kinds
    }
    setting.out.push(tcp(HOST, ports.CLASSIC.pin), b"whole address")
    assert sockets["pin"].recv() == b"whole address"


def io_threads() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            if "ZMQbg/IO" in (task / "comm").read_text():
                found.add(int(task.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@contextmanager
def io_thread() -> Iterator[int]:
    """The I/O thread of a batching context, once it has its name, which it gives itself after its policy."""
    before = io_threads()
    context = batching_context()
    context.socket(zmq.PUSH).close()
    deadline = time.monotonic() + WAIT_MS / 1000
    while not (new := io_threads() - before):
        assert time.monotonic() < deadline
    yield new.pop()
    context.destroy(0)


def test_the_io_thread_pushes_nobody_off_a_core() -> None:
    own = os.sched_getscheduler(0)
    with io_thread() as thread:
        assert os.sched_getscheduler(thread) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == own != os.SCHED_BATCH


def test_where_that_is_forbidden_it_is_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with io_thread() as thread:
        assert os.sched_getscheduler(thread) == os.SCHED_OTHER


def test_who_makes_room_for_another_address_still_sends_what_it_took(setting: Setting) -> None:
    sink = setting.context.socket(zmq.PULL)
    sink.rcvtimeo = WAIT_MS
    setting.sockets.append(sink)
    addresses = [tcp(HOST, 7000 + number) for number in range(40)]
    for address in addresses:
        sink.bind(address)
    few = PushSockets(setting.context, 16, given_up_linger_ms=10_000)
    for address in addresses:
        assert few.send(address, address.encode())
    assert {sink.recv().decode() for _ in addresses} == set(addresses)
    few.close()


def test_those_that_make_room_do_not_use_up_the_context(setting: Setting) -> None:
    setting.context.set(zmq.MAX_SOCKETS, 8 + MAX_LINGERING + 8)
    few = PushSockets(setting.context, 8, given_up_linger_ms=60_000)
    sink = setting.context.socket(zmq.PULL)
    setting.sockets.append(sink)
    addresses = [tcp(HOST, 7000 + number) for number in range(200)]
    deadline = time.monotonic() + WAIT_MS / 1000
    for address in addresses:
        # A closed socket takes a moment to make room.
        while not few.send(address, b"to nobody yet"):
            assert time.monotonic() < deadline, f"nothing could be sent to {address}"
    few.close()
    for address in addresses:  # so that the end has not to wait for those that linger
        sink.bind(address)
    sink.rcvtimeo = 2_000
    with pytest.raises(zmq.Again):
        while True:
            sink.recv()
