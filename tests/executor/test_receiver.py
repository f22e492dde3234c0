from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import zmq

from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    CallArrived,
    DepartArrived,
    Event,
    PinArrived,
    ScheduleArrived,
    TriggerArrived,
    UnpinArrived,
)
from ray_sched.executor.receiver import AT_ONCE, Receiver
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal
from ray_sched.wire.ports import WIDE, tcp
from tests.executor.bench import is_readable
from tests.wire.players import Pusher

IP, TID = "127.0.3.99", 120


class Heard:
    """A receiver in the wide layout, and what it has told."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.events: list[Event] = []
        self.noted: list[Destination] = []
        self.inbox: deque[bytes] = deque()
        self.faulty_key = ""
        self.on_arrival: Callable[[], object] = lambda: None
        self.receiver = Receiver(
            self.context,
            IP,
            TID,
            WIDE,
            self.note,
            self.inbox,
            self.emit,
            max_message_bytes=100_000,
            max_control_bytes=1_000,
            max_name_bytes=100,
        )

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_arrival()

    def note(self, destination: Destination) -> int:
        if self.faulty_key and destination.key == self.faulty_key:
            raise RuntimeError("a fault of ours")
        self.noted.append(destination)
        return len(self.noted)

    def until(self, count: int, *, calls: bool = True) -> list[Event]:
        for _ in range(200):
            if len(self.events) >= count:
                break
            self.receiver.receive(0.05, calls=calls, control=True)
        return self.events


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.receiver.close()
    heard.receiver.wake()
    heard.context.term()


@pytest.fixture
def pusher() -> Iterator[Pusher]:
    pusher = Pusher()
    yield pusher
    pusher.close()


def test_calls_stay_where_they_are_while_too_much_is_queued(heard: Heard, pusher: Pusher) -> None:
    call = cb.FunctionCall(name="f", response_key="key")
    pusher.push(tcp(IP, WIDE.call + TID), call.SerializeToString())
    pusher.push(tcp(IP, WIDE.unpin + TID), b"f")
    pusher.push(tcp(IP, WIDE.depart + TID), b"")
    control = heard.until(2, calls=False)
    assert sorted(map(type, control), key=str) == sorted((UnpinArrived, DepartArrived), key=str)
    heard.receiver.receive(0.05, calls=False, control=False)
    assert heard.until(3)[2] == CallArrived(call, 1)
    assert [destination.key for destination in heard.noted] == ["key"]


def test_more_than_are_taken_at_once_are_taken_without_another_word(heard: Heard, pusher: Pusher) -> None:
    names = [f"f{number}" for number in range(2 * AT_ONCE + 1)]
    for name in names:
        pusher.push(tcp(IP, WIDE.unpin + TID), name.encode())
    pusher.push(tcp(IP, WIDE.depart + TID), b"")
    heard.receiver.receive(1.0, calls=False, control=False)
    assert heard.events == []
    told = [event for event in heard.until(len(names) + 1) if isinstance(event, UnpinArrived)]
    assert told == [UnpinArrived(name) for name in names]


def test_a_fault_costs_one_message_and_no_other(heard: Heard, pusher: Pusher) -> None:
    heard.faulty_key = "1"
    for number in range(4):
        call = cb.FunctionCall(name="f", response_key=str(number))
        pusher.push(tcp(IP, WIDE.call + TID), call.SerializeToString())
    with pytest.raises(RuntimeError, match="a fault of ours"):
        heard.until(4)
    assert [event.entry for event in heard.events if isinstance(event, CallArrived)] == [1]
    heard.until(3)
    assert [destination.key for destination in heard.noted] == ["0", "2", "3"]


def test_it_looks_at_other_things_though_messages_come_without_end(heard: Heard, pusher: Pusher) -> None:
    address = tcp(IP, WIDE.unpin + TID)
    heard.on_arrival = partial(pusher.push, address, b"next")
    pusher.push(address, b"first")
    while not heard.events:
        heard.receiver.receive(10.0, calls=True, control=True)
    assert 1 <= len(heard.events) <= AT_ONCE


def test_what_came_before_a_large_message_does_not_wait_for_it(heard: Heard, pusher: Pusher) -> None:
    large = cb.Value(body=b"x" * 80_000)
    schedule = cb.DagSchedule(id="call", target_function="f")
    trigger = cb.DagTrigger(id="call", target_function="f", arguments={"values": [large]})
    call = cb.FunctionCall(name="f", response_key="key", arguments={"values": [large]})
    pusher.push(tcp(IP, WIDE.schedule + TID), schedule.SerializeToString())
    pusher.push(tcp(IP, WIDE.trigger + TID), trigger.SerializeToString())
    pusher.push(tcp(IP, WIDE.call + TID), call.SerializeToString())
    while len(heard.receiver._left) < 3:  # until all are there
        heard.receiver.receive(0.05, calls=False, control=True)
    expected = [ScheduleArrived(schedule, 1), TriggerArrived(trigger), CallArrived(call, 2)]
    for number in range(3):
        heard.receiver.receive(1.0, calls=True, control=True)
        assert heard.events == expected[: number + 1]


class LookedAt(list[Event]):
    """Says that something is pending, and whether it was asked."""

    looked_at = False

    def __len__(self) -> int:
        self.looked_at = True
        return 1


def test_who_stands_in_gives_way_to_who_has_to_receive(heard: Heard, pusher: Pusher) -> None:
    began, over = threading.Event(), threading.Event()
    heard.on_arrival = began.set

    def stand_in() -> None:
        while not over.is_set():
            heard.receiver.stand_in(60.0, calls=True, control=True)

    standing_in = threading.Thread(target=stand_in)
    standing_in.start()
    pusher.push(tcp(IP, WIDE.unpin + TID), b"f")
    assert began.wait(10.0)
    left = LookedAt()
    heard.receiver.receive(10.0, calls=True, control=True, pending=left)
    assert left.looked_at, "it never was the turn of the one that has to receive"
    over.set()
    heard.receiver.wake()
    standing_in.join(10.0)
    assert not standing_in.is_alive()


def test_who_stands_in_gives_way_after_the_message_that_it_has(heard: Heard, pusher: Pusher) -> None:
    left = LookedAt()
    taken_till_then: list[int] = []

    def claim() -> None:
        heard.receiver.receive(10.0, calls=True, control=True, pending=left)
        taken_till_then.append(list.__len__(heard.events))

    claiming = threading.Thread(target=claim)

    def on_arrival() -> None:
        if not claiming.is_alive() and not taken_till_then:
            claiming.start()
            while not heard.receiver._claimed:
                pass

    heard.on_arrival = on_arrival
    for name in (b"f", b"g"):
        pusher.push(tcp(IP, WIDE.unpin + TID), name)
    while not heard.receiver._left:
        heard.receiver.receive(0.05, calls=False, control=False)
    heard.receiver.stand_in(0.0, calls=True, control=True)
    claiming.join(10.0)
    assert (left.looked_at, taken_till_then) == (True, [1])
    assert heard.until(2) == [UnpinArrived("f"), UnpinArrived("g")]


def test_a_forked_function_that_asks_for_messages_goes_on(heard: Heard) -> None:
    child = os.fork()
    if not child:
        heard.receiver.take_messages()
        os._exit(7)
    ended = os.pidfd_open(child)
    try:
        if not is_readable(ended):
            os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        os.close(ended)


def test_what_is_pending_is_not_waited_on(heard: Heard, pusher: Pusher) -> None:
    pusher.push(tcp(IP, WIDE.unpin + TID), b"f")
    pending = heard.until(1).copy()
    pusher.push(tcp(IP, WIDE.unpin + TID), b"g")
    heard.receiver.receive(60.0, calls=True, control=True, pending=pending)
    assert heard.events == pending
    assert heard.until(2) == [UnpinArrived("f"), UnpinArrived("g")]


def test_nobody_stands_in_for_who_receives(heard: Heard, pusher: Pusher) -> None:
    stood_in: list[bool] = []

    def stand_in() -> None:
        heard.receiver.stand_in(60.0, calls=True, control=True)
        stood_in.append(True)

    def meanwhile() -> None:
        thread = threading.Thread(target=stand_in)
        thread.start()
        thread.join(10.0)

    heard.on_arrival = meanwhile
    pusher.push(tcp(IP, WIDE.unpin + TID), b"f")
    heard.until(1)
    assert stood_in == [True]


def test_a_function_takes_its_messages_itself_also_while_another_thread_receives(
    heard: Heard, pusher: Pusher
) -> None:
    over = threading.Event()

    def receive() -> None:
        while not over.is_set():
            heard.receiver.receive(60.0, calls=True, control=True)

    def takes(content: bytes) -> None:
        pusher.push(tcp(IP, WIDE.user_message + TID), content)
        while not heard.inbox:
            heard.receiver.take_messages()
        assert heard.inbox.popleft() == content

    takes(b"nobody receives")
    receiving = threading.Thread(target=receive)
    receiving.start()
    for number in range(20):
        takes(b"somebody receives %d" % number)
    over.set()
    heard.receiver.wake()
    receiving.join(10.0)
    assert not receiving.is_alive()
    heard.receiver.close()
    heard.receiver.take_messages()
    assert not heard.inbox


def test_user_messages_go_to_the_inbox_unread(heard: Heard, pusher: Pusher) -> None:
    pusher.push(tcp(IP, WIDE.user_message + TID), b"no pickle")
    while not heard.inbox:
        heard.receiver.receive(1.0, calls=False, control=True)
    assert list(heard.inbox) == [b"no pickle"]


def test_a_message_that_does_not_parse_is_counted_and_stops_nothing(heard: Heard, pusher: Pusher) -> None:
    pin = internal.PinFunction(name="f")
    for message in (b"\xff", pin.SerializeToString()):
        pusher.push(tcp(IP, WIDE.pin + TID), message)
    assert heard.until(1) == [PinArrived(pin)]
    assert heard.receiver.bad_messages == 1


def test_a_message_of_several_parts_is_none(heard: Heard) -> None:
    with heard.context.socket(zmq.PUSH) as socket:
        socket.connect(tcp(IP, WIDE.unpin + TID))
        socket.send_multipart([b"f", b"g"])
        socket.send(b"h")
        assert heard.until(1) == [UnpinArrived("h")]
    assert heard.receiver.bad_messages == 1


def test_who_sends_too_much_loses_the_connection_and_nobody_else_does(heard: Heard) -> None:
    address = tcp(IP, WIDE.unpin + TID)
    with heard.context.socket(zmq.PUSH) as greedy, heard.context.socket(zmq.PUSH) as other:
        greedy.linger = 0
        with greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            for socket in (greedy, other):
                socket.connect(address)
            greedy.send(b"f" * 1001)
            assert monitor.poll(10_000)
            greedy.monitor(None, 0)
        other.send(b"g")
        assert heard.until(1) == [UnpinArrived("g")]


def test_who_connects_to_a_port_for_calls_again_was_cut_off(heard: Heard) -> None:
    message = cb.FunctionCall(name="f", response_key="key").SerializeToString()

    def call(source: str, port: int = WIDE.call) -> None:
        with heard.context.socket(zmq.PUSH) as way:
            way.connect(f"tcp://{source}:0;{IP}:{port + TID}")
            way.send(message)
            arrived = len(heard.events)
            assert len(heard.until(arrived + 1)) == arrived + 1

    for source in ("127.0.3.90", "127.0.3.91"):
        call(source)
    assert heard.receiver.reconnections == 0
    for _ in range(2):  # who only looks whether the port is open
        with socket.create_connection((IP, WIDE.call + TID), source_address=("127.0.3.91", 0)):
            pass
    call("127.0.3.91")
    assert heard.receiver.reconnections == 1
    heard.events.clear()
    with heard.context.socket(zmq.PUSH) as way:
        for _ in range(2):  # of other executors' triggers each has its own end
            way.connect(f"tcp://127.0.3.92:0;{IP}:{WIDE.trigger + TID}")
            way.send(cb.DagTrigger(id="id", target_function="f").SerializeToString())
            heard.until(1)
    assert heard.receiver.reconnections == 1


def test_its_ports_are_freed_also_while_the_context_ends() -> None:
    heard = Heard()
    probe = heard.context.socket(zmq.PULL)
    ending = threading.Thread(target=heard.context.term)
    ending.start()
    with pytest.raises(zmq.ContextTerminated):
        probe.poll(10_000)
    with pytest.raises(zmq.ContextTerminated):  # as a port hears of it that was read from just then
        heard.receiver.receive(0.05, calls=True, control=True)
    heard.receiver.close()
    probe.close()
    ending.join(10.0)
    assert not ending.is_alive()
