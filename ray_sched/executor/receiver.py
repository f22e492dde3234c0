"""The ports of an executor thread, and what comes in on them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Container, Sized
from typing import Final

import zmq
from google.protobuf.message import DecodeError

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
from ray_sched.errors import BadMessageError
from ray_sched.executor import connections
from ray_sched.executor.connections import Connections
from ray_sched.logs import Complaints
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal
from ray_sched.wire.codec import check_names, parse, parse_text
from ray_sched.wire.curve import FROM_EXECUTORS, FROM_GROUP, Keys
from ray_sched.wire.ports import Layout
from ray_sched.wire.readiness import Readiness, has_message
from ray_sched.wire.sockets import bind_pull, receive

logger = logging.getLogger(__name__)

AT_ONCE: Final = 200
"""Messages that are taken from one port before the others have their turn."""
LARGE_BYTES: Final = 1 << 16
"""Of a message: what came before it is not to wait until it is parsed."""
MESSAGES_AT_ONCE: Final = 100_000
"""User messages that are taken before whoever asks for them goes on."""
TURN_S: Final = 1.0
"""How long to wait for another thread to leave off: it does so after the message that it has before it."""
HOLDERS: Final = "another executor with this thread id on the same address, or one that is still stopping,"


class Receiver:
    """Binds the seven ports and turns messages into events, in the thread that asks for them.

    `begin` notes in the journal what is accepted, before anybody hears of it. Events go to `emit` as they
    come, user messages to `inbox` as they are. A larger message than `max_message_bytes` (or
    `max_control_bytes`, for pins and the like) costs its sender the connection. Raises PortTakenError or
    ConfigError when a port cannot be bound.

    Rule: one thread receives at a time, and only it touches the sockets, but for the one of user messages,
    which has a lock of its own: functions read it, too.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        ip: str,
        tid: int,
        layout: Layout,
        begin: Callable[[Destination], int],
        inbox: deque[bytes],
        emit: Callable[[Event], None],
        *,
        max_message_bytes: int,
        max_control_bytes: int,
        max_name_bytes: int,
        keys: Keys | None = None,
    ) -> None:
        self.bad_messages = 0
        self.reconnections = 0
        """How often an address that had been connected to a port for calls was connected to it anew."""
        self._max_name_bytes = max_name_bytes
        self._begin = begin
        self._inbox = inbox
        self._emit = emit
        self._complaints = Complaints(logger)
        self._lock = threading.Lock()
        """Of the wake-up descriptor."""
        self._turn = threading.Lock()
        """Whoever has it receives."""
        self._claimed = False
        """Whether somebody waits for that."""
        self._stands_in = False
        """Whether what is taken is handed to another thread at once."""
        self._message_turn = threading.Lock()
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._takers: dict[zmq.Socket[bytes], Callable[[bytes], None]] = {}
        self._monitors: dict[zmq.Socket[bytes], Connections] = {}
        """What tells of new connections to the ports for calls."""
        self._calls: list[zmq.Socket[bytes]] = []
        self._work: list[zmq.Socket[bytes]] = []
        """All but the one of user messages, which may always be taken."""
        self._messages: zmq.Socket[bytes]
        """The port of user messages."""
        self._taken = 0
        """Messages of this look."""
        self._large: deque[tuple[zmq.Socket[bytes], list[bytes]]] = deque()
        """What is taken one by one, after what came before it was handed over."""
        self._process = os.getpid()
        self._left: dict[zmq.Socket[bytes], None] = {}
        """Those that have something which was not wanted when it came."""
        self._readiness: Readiness | None = None
        work: dict[int, Callable[[bytes], None]] = {
            layout.schedule: self._on_schedule,
            layout.trigger: self._on_trigger,
            layout.call: self._on_call,
        }
        # Looked at in this order: of an unpin and a pin that are both there, the unpin was the first.
        control: dict[int, Callable[[bytes], None]] = {
            layout.unpin: self._on_unpin,
            layout.pin: self._on_pin,
            layout.depart: self._on_depart,
            layout.user_message: inbox.append,
        }
        try:
            for base, take in {**work, **control}.items():
                small = base in (layout.pin, layout.unpin, layout.depart)
                limit = max_control_bytes if small else max_message_bytes
                admits = FROM_EXECUTORS if base in (layout.trigger, layout.user_message) else FROM_GROUP
                socket = bind_pull(
                    context, ip, base + tid, HOLDERS, max_message_bytes=limit, keys=keys, admits=admits
                )
                self._takers[socket] = take
                if base == layout.user_message:
                    self._messages = socket
                else:
                    self._work.append(socket)
                    if base in work:
                        self._calls.append(socket)
                if base in (layout.call, layout.schedule):
                    self._monitors[socket.get_monitor_socket(connections.EVENTS)] = Connections()
            self._turns = {socket: turn for turn, socket in enumerate([*self._takers, *self._monitors])}
            self._readiness = Readiness(self._turns, self._wake)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether there is nothing to receive any more."""
        return self._closed

    def wake(self) -> None:
        """Make whoever receives leave off soon. Any thread may call this."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def receive(self, timeout_s: float, *, calls: bool, control: bool, pending: Sized = ()) -> None:
        """Wait for messages and take those that are there: calls, or what else is work, where it is wanted.
        It may return with none before the time is over, and waits for none where `pending` has something:
        another thread that receives is made to leave off, and may have left something there.

        What is not wanted, since too much is queued already, stays in its socket, and then with its sender.
        """
        if not self._turn.acquire(blocking=False):
            self._claimed = True
            self.wake()
            taken = self._turn.acquire(timeout=TURN_S)
            self._claimed = False
            if not taken:
                return
        try:
            if self._large:
                self._take_one(*self._large.popleft())
            elif not pending:
                self._receive(timeout_s, calls, control)
        finally:
            self._turn.release()

    def stand_in(self, timeout_s: float, *, calls: bool, control: bool) -> None:
        """`receive`, unless another thread does, and until one wants to."""
        if self._claimed or not self._turn.acquire(blocking=False):
            return
        self._stands_in = True
        try:
            while self._large:
                self._take_one(*self._large.popleft())
            self._receive(timeout_s, calls, control)
        finally:
            self._stands_in = False
            self._turn.release()

    def take_messages(self) -> None:
        """Take the user messages that are there, without waiting. Any thread may call this.

        Nothing is done where a function has forked: a socket that another process has never answers.
        """
        if os.getpid() != self._process:
            return
        with self._message_turn, contextlib.suppress(zmq.ContextTerminated):
            if not self._closed and has_message(self._messages):
                self._take_messages(MESSAGES_AT_ONCE)

    def _receive(self, timeout_s: float, calls: bool, control: bool) -> None:
        if self._closed:
            return
        assert self._readiness is not None
        unwanted = () if calls and control else self._calls if control else self._work
        for socket in [socket for socket in self._left if socket not in unwanted]:
            del self._left[socket]
            self._readiness.check(socket)
        self._taken = 0
        sockets, woken = self._readiness.wait(timeout_s)
        if woken:
            os.eventfd_read(self._wake)
        elif not sockets and timeout_s:
            self._readiness.check_all()  # should a descriptor ever have said nothing
        try:
            self._take(sockets, unwanted)
        except BaseException:
            self._readiness.check_all()  # what was not read says nothing of itself again
            raise

    def _take(self, sockets: list[zmq.Socket[bytes]], unwanted: Container[zmq.Socket[bytes]]) -> None:
        """Take what is wanted of these, in their order."""
        assert self._readiness is not None
        if len(sockets) > 1:
            sockets.sort(key=self._turns.__getitem__)
        for socket in sockets:
            if socket in unwanted:
                if self._readiness.leave(socket):
                    self._left[socket] = None
                continue
            if socket is self._messages:
                with self._message_turn:
                    all_taken = self._take_messages(AT_ONCE)
            elif socket in self._takers:
                all_taken = self._take_all(socket)
            else:
                all_taken = self._on_connections(socket)
            if not all_taken:
                self._readiness.check(socket)

    def _take_all(self, socket: zmq.Socket[bytes]) -> bool:
        """Take the messages of a port, so many at once; whether these were all."""
        for number in range(AT_ONCE):
            try:
                if number == 1 and not has_message(socket):
                    return True
                parts = receive(socket)
            except zmq.Again:
                return True
            self._taken += 1
            if self._taken > 1 and len(parts[0]) > LARGE_BYTES and not self._stands_in:
                self._large.append((socket, parts))
                return False
            self._take_one(socket, parts)
            if self._claimed:
                return False
        return False

    def _take_messages(self, at_once: int) -> bool:
        """`_take_all` for user messages. Whoever has their turn may call this."""
        for _ in range(at_once):
            try:
                parts = receive(self._messages)
            except zmq.Again:
                return True
            self._take_one(self._messages, parts)
        return False

    def _take_one(self, socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
        try:
            if len(parts) != 1:
                raise BadMessageError(f"a message of {len(parts)} parts: send one")
            self._takers[socket](parts[0])
        except (BadMessageError, DecodeError) as error:
            self.bad_messages += 1
            self._complaints.add("A message was dropped", error)

    def close(self) -> None:
        """Free the ports, also where the context ends meanwhile: that waits for it. Again is harmless."""
        self.wake()
        with self._turn, self._message_turn, self._lock:
            if self._closed:
                return
            self._closed = True
            for socket in self._takers:
                with contextlib.suppress(zmq.ContextTerminated):
                    socket.disable_monitor()
                socket.close(0)
            for monitor in self._monitors:
                monitor.close(0)
            if self._readiness is not None:
                self._readiness.close()
            os.close(self._wake)

    def _on_connections(self, monitor: zmq.Socket[bytes]) -> bool:
        """Whoever connects again was cut off: what was on its way is lost, and nobody else knows."""
        for _ in range(AT_ONCE):
            try:
                told = receive(monitor)[0]
            except zmq.Again:
                return True
            self.reconnections += self._monitors[monitor].is_reconnection(told)
        return False

    def _on_schedule(self, message: bytes) -> None:
        schedule = parse(cb.DagSchedule, message)
        self._check(message, schedule.id, schedule.output_key, schedule.target_function, schedule.dag.name)
        self._emit(ScheduleArrived(schedule, self._begin(Destination.of_error(schedule))))

    def _on_trigger(self, message: bytes) -> None:
        trigger = parse(cb.DagTrigger, message)
        self._check(message, trigger.id, trigger.target_function, trigger.source)
        self._emit(TriggerArrived(trigger))

    def _on_call(self, message: bytes) -> None:
        call = parse(cb.FunctionCall, message)
        self._check(message, call.response_key, call.name)
        self._emit(CallArrived(call, self._begin(Destination.of_call(call))))

    def _on_pin(self, message: bytes) -> None:
        pin = parse(internal.PinFunction, message)
        self._check(message, pin.name, pin.request)
        self._emit(PinArrived(pin))

    def _on_unpin(self, message: bytes) -> None:
        self._emit(UnpinArrived(parse_text("function name", message)))

    def _check(self, message: bytes, *names: str) -> None:
        """Names and keys are remembered for a while: none may be longer than a scheduler lets pass."""
        if len(message) > self._max_name_bytes:  # else none in it can be
            check_names(self._max_name_bytes, *names)

    def _on_depart(self, message: bytes) -> None:
        self._emit(DepartArrived())
