"""The ports of an executor thread, and what comes in on them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Container
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
HOLDERS: Final = "another executor with this thread id on the same address, or one that is still stopping,"


class Receiver:
    """Binds the seven ports and turns messages into events. For the I/O thread, but for `wake`.

    `begin` notes in the journal what is accepted, before anybody hears of it. Events go to `emit` as they
    come; `hand_over` is called before it waits for more, or takes what may take time. User messages go to
    `inbox` as they are. A larger message than `max_message_bytes` (or `max_control_bytes`, for pins and
    the like) costs its sender the connection. Raises PortTakenError or ConfigError when a port cannot be
    bound.
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
        hand_over: Callable[[], None],
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
        self._hand_over = hand_over
        self._complaints = Complaints(logger)
        self._lock = threading.Lock()
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._takers: dict[zmq.Socket[bytes], Callable[[bytes], None]] = {}
        self._monitors: dict[zmq.Socket[bytes], Connections] = {}
        """What tells of new connections to the ports for calls."""
        self._calls: list[zmq.Socket[bytes]] = []
        self._control: list[zmq.Socket[bytes]] = []
        self._taken = 0
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
            layout.user_message: self._inbox.append,
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
                (self._control if base in control else self._calls).append(socket)
                if base in (layout.call, layout.schedule):
                    self._monitors[socket.get_monitor_socket(connections.EVENTS)] = Connections()
            self._turns = {socket: turn for turn, socket in enumerate([*self._takers, *self._monitors])}
            self._readiness = Readiness(self._turns, self._wake)
        except BaseException:
            self.close()
            raise

    def wake(self) -> None:
        """Make `receive` return soon. Any thread may call this."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def receive(self, timeout_s: float, *, calls: bool, control: bool) -> None:
        """Wait for messages and take those that are there: calls, or all but calls, where they are wanted.
        Where these were few, and all, further ones, as long as `timeout_s` lasts.

        What is not wanted, since too much is queued already, stays in its socket, and then with its sender.
        """
        assert self._readiness is not None
        unwanted = () if calls and control else self._calls if control else self._takers
        for socket in [socket for socket in self._left if socket not in unwanted]:
            del self._left[socket]
            self._readiness.check(socket)
        self._taken = 0
        until = time.monotonic() + timeout_s
        while True:
            sockets, woken = self._readiness.wait(max(0.0, until - time.monotonic()))
            if woken:
                os.eventfd_read(self._wake)
            elif not sockets:
                self._readiness.check_all()  # should a descriptor ever have said nothing
            try:
                all_taken = self._take(sockets, unwanted)
            except BaseException:
                self._readiness.check_all()  # what was not read says nothing of itself again
                raise
            finally:
                self._hand_over()
            if woken or not (sockets and all_taken) or self._taken >= AT_ONCE or time.monotonic() >= until:
                return

    def _take(self, sockets: list[zmq.Socket[bytes]], unwanted: Container[zmq.Socket[bytes]]) -> bool:
        """Take what is wanted of these, in their order; whether that was all."""
        assert self._readiness is not None
        if len(sockets) > 1:
            sockets.sort(key=self._turns.__getitem__)
        all_taken = True
        for socket in sockets:
            if socket in unwanted:
                if self._readiness.leave(socket):
                    self._left[socket] = None
            elif not (self._take_all(socket) if socket in self._takers else self._on_connections(socket)):
                self._readiness.check(socket)
                all_taken = False
        return all_taken

    def _take_all(self, socket: zmq.Socket[bytes]) -> bool:
        """Take the messages of a port, so many at once; whether these were all."""
        take = self._takers[socket]
        for number in range(AT_ONCE):
            try:
                if number == 1 and not has_message(socket):
                    return True
                parts = receive(socket)
            except zmq.Again:
                return True
            self._taken += 1
            if number or len(parts[0]) > LARGE_BYTES:
                self._hand_over()
            try:
                if len(parts) != 1:
                    raise BadMessageError(f"a message of {len(parts)} parts: send one")
                take(parts[0])
            except (BadMessageError, DecodeError) as error:
                self.bad_messages += 1
                self._complaints.add("A message was dropped", error)
        return False

    def close(self) -> None:
        """Free the ports, also where the context ends meanwhile: that waits for it."""
        with self._lock:
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
