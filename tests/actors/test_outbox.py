"""The ingress's messages to executors: kept until the turn's end, then sent in order, or held for a while."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ray_sched.actors.front import MAX_HELD, RETRY_S, Outbox
from ray_sched.core.dispatch import SCHEDULE, TRIGGER
from ray_sched.core.executor import Address, Executor
from ray_sched.wire import ports
from ray_sched.wire.ports import CLASSIC, tcp
from ray_sched.wire.sockets import HIGH_WATER_MARK, MAX_LINGERING, PushSockets, batching_context

HOST = "127.0.12.11"
WAIT_MS = 10_000


class Setting:
    def __init__(self) -> None:
        self.context = batching_context()
        self.sockets: list[zmq.Socket[bytes]] = []
        self.unsendable: list[Address] = []
        self.dropped: Counter[str] = Counter()
        self.unsent: list[tuple[str, bytes]] = []
        self.have_room: list[Address] = []
        self.out = Outbox(
            self.context,
            CLASSIC,
            self.unsendable.append,
            lambda what, why: self.dropped.update([what]),
            lambda kind, message: self.unsent.append((kind, message)),
            on_room=self.have_room.append,
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


def fill(setting: Setting, tid: int = 5, more: int = 3) -> list[bytes]:
    """Nobody listens at that port: the socket takes so many messages and no more."""
    messages = [b"%d" % number for number in range(HIGH_WATER_MARK + more)]
    for message in messages:
        setting.out.put((HOST, tid), "call", message)
    setting.out.flush()
    return messages


def received(setting: Setting, socket: zmq.Socket[bytes], count: int) -> list[bytes]:
    """So many messages, while it is tried again to send what is held."""
    messages: list[bytes] = []
    deadline = time.monotonic() + WAIT_MS / 1000
    while len(messages) < count and time.monotonic() < deadline:
        setting.out.flush()
        while socket.poll(10):
            messages.append(socket.recv())
    return messages


def test_what_finds_no_room_waits_for_it_and_its_executor_is_named(setting: Setting) -> None:
    messages = fill(setting)
    assert (setting.unsendable, setting.out.held) == ([(HOST, 5)], 3)
    setting.out.put((HOST, 5), "call", b"last")
    setting.out.put((HOST, 5), "schedule", b"has room")
    setting.out.flush()
    assert (setting.unsendable, setting.out.held) == ([(HOST, 5)] * 2, 4)
    assert setting.have_room == []
    calls, schedules = setting.executor("call", 5), setting.executor("schedule", 5)
    assert received(setting, calls, len(messages) + 1) == [*messages, b"last"]
    assert schedules.recv() == b"has room"
    assert (setting.have_room, setting.out.held) == ([(HOST, 5)], 0)
    assert not setting.dropped and not setting.unsent


def test_whether_there_is_room_again_is_looked_at_once_in_a_while(setting: Setting) -> None:
    messages = fill(setting)
    setting.out.flush(100.0)
    assert len(setting.unsendable) == 2
    calls = setting.executor("call", 5)
    taken = [calls.recv() for _ in range(HIGH_WATER_MARK)]  # all that the socket had
    setting.out.put((HOST, 5), "call", b"last")
    for _ in range(3):
        setting.out.flush(100.0 + RETRY_S / 2)
    assert (len(setting.unsendable), setting.have_room, setting.out.held) == (2, [], 4)
    assert not calls.poll(50)
    setting.out.flush(100.0 + RETRY_S)
    assert (setting.have_room, setting.out.held) == ([(HOST, 5)], 0)
    assert [*taken, *[calls.recv() for _ in range(4)]] == [*messages, b"last"]


def test_more_than_may_be_held_is_dropped_and_told(setting: Setting) -> None:
    fill(setting, more=MAX_HELD + 2)
    assert (setting.dropped, setting.out.held) == ({"send": 2}, MAX_HELD)
    assert setting.unsent == [("call", b"%d" % (HIGH_WATER_MARK + MAX_HELD + number)) for number in (0, 1)]


def test_what_is_held_for_an_executor_that_left_is_told(setting: Setting) -> None:
    messages = fill(setting)
    setting.out.give_up((HOST, 5), linger_ms=1)
    assert setting.unsent == [("call", message) for message in messages[-3:]]
    assert (setting.out.held, setting.dropped) == (0, {"send": 3})
    setting.out.flush()
    assert setting.have_room == []


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
