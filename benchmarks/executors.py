"""Played executors: one process that takes what executors get, and throws it away.

    python -m benchmarks.executors IP SCHEDULER_IP COUNT

They accept every pin and tell a scheduler their status once a second. Whoever asks at CONTROL on IP is
told how many schedules, triggers and calls arrived so far; who asks with a number has pins answered that
many milliseconds later from then on.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import zmq

from benchmarks.helper import end_with_parent, say_ready
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import PIN_ACCEPT, STATUS, WIDE, tcp

CONTROL: Final = 4998
STATUS_PERIOD_S: Final = 1.0
LAYOUT: Final = WIDE
"""Of all that is measured here: it has room for thousands of executors on a few addresses."""


class Drain:
    """Counts messages as cheaply as Python can: one socket bound to all ports, in a thread of its own."""

    def __init__(self, context: zmq.Context[zmq.SyncSocket], addresses: Iterable[str]) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.BACKLOG, 1024)
        for address in addresses:
            self._socket.bind(address)
        self.arrived = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        receive = self._socket.recv
        for arrived in itertools.count(1):
            receive()
            self.arrived = arrived


class Pins:
    """Accepts pins, and tells statuses."""

    def __init__(self, context: zmq.Context[zmq.SyncSocket], ip: str, scheduler_ip: str, count: int) -> None:
        self._ip = ip
        self._functions: list[set[str]] = [set() for _ in range(count)]
        self.delay_s = 0.0
        self.due: deque[tuple[float, int]] = deque()
        """When which of them is to answer a pin."""
        self.sockets: dict[zmq.SyncSocket, tuple[str, int]] = {}
        for tid in range(count):
            for kind, base in (("pin", LAYOUT.pin), ("unpin", LAYOUT.unpin)):
                socket = context.socket(zmq.PULL)
                socket.bind(tcp(ip, base + tid))
                self.sockets[socket] = (kind, tid)
        self._answers = context.socket(zmq.PUSH)
        self._answers.connect(tcp(scheduler_ip, PIN_ACCEPT))
        self._statuses = context.socket(zmq.PUSH)
        self._statuses.connect(tcp(scheduler_ip, STATUS))

    def receive(self, socket: zmq.SyncSocket) -> None:
        kind, tid = self.sockets[socket]
        raw = socket.recv()
        if kind == "pin":
            self._functions[tid].add(internal_pb2.PinFunction.FromString(raw).name)
            self.due.append((time.monotonic() + self.delay_s, tid))
        else:
            self._functions[tid].discard(raw.decode())
            self.report(tid)

    def answer_due(self) -> None:
        while self.due and time.monotonic() >= self.due[0][0]:
            _, tid = self.due.popleft()
            self._answers.send(cb.GenericResponse(success=True).SerializeToString())
            self.report(tid)

    def report(self, tid: int) -> None:
        status = internal_pb2.ThreadStatus(
            ip=self._ip, tid=tid, functions=sorted(self._functions[tid]), utilization=0.1, running=True
        )
        self._statuses.send(status.SerializeToString())

    def report_all(self) -> None:
        for tid in range(len(self._functions)):
            self.report(tid)


def main() -> None:
    end_with_parent()
    ip, scheduler_ip, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    bases = (LAYOUT.schedule, LAYOUT.trigger, LAYOUT.call)
    drain = Drain(context, [tcp(ip, base + tid) for base in bases for tid in range(count)])
    pins = Pins(context, ip, scheduler_ip, count)
    control = context.socket(zmq.REP)
    control.bind(tcp(ip, CONTROL))
    poller = zmq.Poller()
    for socket in (*pins.sockets, control):
        poller.register(socket, zmq.POLLIN)
    say_ready()
    next_status = time.monotonic()
    while True:
        until = min(next_status, pins.due[0][0]) if pins.due else next_status
        for socket, _ in poller.poll(max(0, math.ceil((until - time.monotonic()) * 1e3))):
            if socket is control:
                if asked := control.recv():
                    pins.delay_s = float(asked) / 1e3
                control.send(str(drain.arrived).encode())
            else:
                pins.receive(socket)
        pins.answer_due()
        if time.monotonic() >= next_status:
            pins.report_all()
            next_status = time.monotonic() + STATUS_PERIOD_S


if __name__ == "__main__":
    main()
