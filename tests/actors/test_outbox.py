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

from ray_sched.actors import front
from ray_sched.actors.front import HOLD_S, MAX_HELD, RETRY_S, Outbox
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
        self.full: list[Address] = []
        self.have_room: list[Address] = []
        self.out = Outbox(
            self.context,
            CLASSIC,
            self.unsendable.append,
            lambda what, why: self.dropped.update([what]),
            lambda kind, message: self.unsent.append((kind, message)),
            on_full=self.full.append,
            on_room=self.have_room.append,
        )

    def flush(self) -> None:
        self.out.flush(time.monotonic())

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
    setting.flush()
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
    setting.flush()
    for socket in (schedules, triggers):
        assert [int(socket.recv()) for _ in range(50)] == list(range(50))


def test_nothing_goes_before_the_flush_and_nothing_goes_twice(setting: Setting) -> None:
    socket = setting.executor("trigger", 0)
    setting.out.put((HOST, 0), "trigger", b"first")
    assert not socket.poll(50)
    setting.flush()
    setting.flush()
    setting.out.put((HOST, 0), "trigger", b"second")
    setting.flush()
    assert [socket.recv(), socket.recv()] == [b"first", b"second"]
    assert not socket.poll(50)


def fill(setting: Setting, now: float = 0.0, tid: int = 5, more: int = 3) -> list[bytes]:
    """Nobody listens at that port: the socket takes so many messages and no more."""
    messages = [b"%d" % number for number in range(HIGH_WATER_MARK + more)]
    for message in messages:
        setting.out.put((HOST, tid), "schedule", message)
    setting.out.flush(now)
    return messages


def received(setting: Setting, socket: zmq.Socket[bytes], count: int) -> list[bytes]:
    """So many messages, while it is tried again to send what is held."""
    messages: list[bytes] = []
    deadline = time.monotonic() + WAIT_MS / 1000
    while len(messages) < count and time.monotonic() < deadline:
        setting.flush()
        while socket.poll(10):
            messages.append(socket.recv())
    return messages


def test_what_finds_no_room_waits_for_it_and_its_executor_is_named(setting: Setting) -> None:
    messages = fill(setting, time.monotonic())
    assert (setting.full, setting.out.held) == ([(HOST, 5)], 3)
    setting.out.put((HOST, 5), "schedule", b"last")
    setting.out.put((HOST, 5), "trigger", b"after its schedule")
    setting.out.put((HOST, 5), "pin", b"has room")
    setting.flush()
    assert (setting.full, setting.out.held) == ([(HOST, 5)], 5)
    assert setting.have_room == []
    pins, schedules, triggers = (setting.executor(kind, 5) for kind in ("pin", "schedule", "trigger"))
    assert pins.recv() == b"has room"
    assert not triggers.poll(50)
    assert received(setting, schedules, len(messages) + 1) == [*messages, b"last"]
    assert triggers.recv() == b"after its schedule"
    assert (setting.have_room, setting.out.held) == ([(HOST, 5)], 0)
    assert not setting.dropped and not setting.unsent and not setting.unsendable


def test_whether_there_is_room_again_is_looked_at_once_in_a_while(setting: Setting) -> None:
    messages = fill(setting, 100.0)
    setting.out.flush(100.0)
    schedules = setting.executor("schedule", 5)
    taken = [schedules.recv() for _ in range(HIGH_WATER_MARK)]  # all that the socket had
    setting.out.put((HOST, 5), "schedule", b"last")
    for _ in range(3):
        setting.out.flush(100.0 + RETRY_S / 2)
    assert (setting.have_room, setting.out.held) == ([], 4)
    assert not schedules.poll(50)
    setting.out.flush(100.0 + RETRY_S)
    assert (setting.full, setting.have_room, setting.out.held) == ([(HOST, 5)], [(HOST, 5)], 0)
    assert [*taken, *[schedules.recv() for _ in range(4)]] == [*messages, b"last"]


def test_more_than_may_be_held_is_dropped_and_told(setting: Setting) -> None:
    fill(setting, more=MAX_HELD + 2)
    assert (setting.dropped, setting.out.held) == ({"send": 2}, MAX_HELD)
    last = HIGH_WATER_MARK + MAX_HELD
    assert setting.unsent == [("schedule", b"%d" % (last + number)) for number in (0, 1)]


def test_what_is_held_for_too_long_is_dropped_and_told(setting: Setting) -> None:
    messages = fill(setting, 100.0)
    setting.out.put((HOST, 5), "schedule", b"later")
    setting.out.flush(102.0)
    setting.out.flush(100.1 + HOLD_S)
    assert setting.unsent == [("schedule", message) for message in messages[-3:]]
    assert (setting.out.held, setting.have_room) == (1, [])
    setting.out.flush(102.1 + HOLD_S)
    assert setting.unsent[3:] == [("schedule", b"later")]
    assert (setting.out.held, setting.dropped) == (0, {"send": 4})
    assert setting.have_room == [], "that nothing is held does not mean that there is room"
    schedules = setting.executor("schedule", 5)
    for _ in range(HIGH_WATER_MARK):
        schedules.recv()
    setting.out.flush(110.0)
    assert (setting.full, setting.have_room) == ([(HOST, 5)], [(HOST, 5)])


def test_what_waits_behind_others_is_not_held_for_longer(setting: Setting) -> None:
    fill(setting, 100.0)
    setting.out.put((HOST, 5), "trigger", b"early")
    setting.out.put((HOST, 5), "call", b"has room")
    setting.out.flush(100.0)
    for seconds in range(1, 10):
        setting.out.put((HOST, 5), "schedule", b"more")
        setting.out.flush(100.0 + seconds)
    assert ("trigger", b"early") in setting.unsent
    assert setting.executor("call", 5).recv() == b"has room"
    assert not setting.executor("trigger", 5).poll(50), "it was given back, as was its schedule"


def test_of_many_that_are_full_some_are_looked_at_in_each_turn(setting: Setting) -> None:
    socket_of: dict[int, zmq.Socket[bytes]] = {}
    for tid in (5, 6):
        fill(setting, 100.0, tid, more=1)
    for tid in (5, 6):
        socket_of[tid] = setting.executor("schedule", tid)
        for _ in range(HIGH_WATER_MARK):
            socket_of[tid].recv()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "RETRIES", 1)
        setting.out.flush(101.0)
        assert setting.have_room == [(HOST, 5)]
        setting.out.flush(102.0)
        assert setting.have_room == [(HOST, 5), (HOST, 6)]
    assert [socket.recv() for socket in socket_of.values()] == [b"%d" % HIGH_WATER_MARK] * 2


def test_a_pin_that_finds_no_room_is_dropped(setting: Setting) -> None:
    for _ in range(HIGH_WATER_MARK + 1):
        setting.out.put((HOST, 5), "pin", b"")
    setting.flush()
    assert (setting.dropped, setting.unsendable, setting.out.held) == ({"send": 1}, [(HOST, 5)], 0)


@pytest.mark.parametrize("linger_ms", [0, 1])
def test_what_is_held_for_an_executor_that_left_is_told(setting: Setting, linger_ms: int) -> None:
    messages = fill(setting)
    setting.out.put((HOST, 5), "trigger", b"of this turn")
    setting.out.give_up((HOST, 5), linger_ms)
    lost = [("schedule", message) for message in messages[-3:]]
    assert setting.unsent == (lost if linger_ms else [*lost, ("trigger", b"of this turn")])
    assert setting.out.held == 0
    setting.flush()
    assert setting.have_room == []


def test_an_address_that_is_none_costs_its_own_messages_alone(setting: Setting) -> None:
    socket = setting.executor("pin", 1)
    setting.out.put(("not an address", 0), "pin", b"lost")
    setting.out.put((HOST, 1), "pin", b"kept")
    setting.flush()
    assert socket.recv() == b"kept"
    assert setting.dropped == {"send": 1}
    assert setting.unsendable == [("not an address", 0)]


def test_every_kind_of_message_has_its_port(setting: Setting) -> None:
    kinds = ("pin", "unpin", "call", "schedule", "trigger", "depart")
    sockets = {kind: setting.executor(kind, 0) for kind in kinds}
    for kind in kinds:
        setting.out.put((HOST, 0), kind, kind.encode())
    setting.flush()
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
