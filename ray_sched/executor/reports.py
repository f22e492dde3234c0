"""What an executor thread tells of itself: statuses, answers to pins, statistics.

The run thread tells what has changed, the I/O thread tells the rest, also while user code runs; a
lock keeps their messages in one order. The sockets have a context of their own, so that last words
go out even when the run thread hangs.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Final

import zmq

from ray_sched.config import Config
from ray_sched.core.utilization import Utilization
from ray_sched.errors import BadMessageError
from ray_sched.logs import Complaints
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal
from ray_sched.wire.curve import Keys
from ray_sched.wire.ports import MGMT_DEPART, MGMT_STATISTICS, MGMT_STATUS, PIN_ACCEPT, STATUS, tcp
from ray_sched.wire.sockets import PushSockets

logger = logging.getLogger(__name__)

NAMES: Final = 1000
"""Functions, and DAGs, that one report counts at most: names come from callers."""
RUNTIMES: Final = 1000
"""Run times of each function and DAG that one report holds at most; counts are always whole."""
SOCKETS: Final = 64


class _Times:
    """How often something ran since the last report, and how long that took (seconds)."""

    def __init__(self) -> None:
        self.count = 0
        self.runtimes: list[float] = []

    def add(self, runtime_s: float) -> None:
        self.count += 1
        if len(self.runtimes) < RUNTIMES:
            self.runtimes.append(runtime_s)


class Reports:
    """Tells the schedulers, and the management node where there is one. Thread-safe."""

    def __init__(
        self,
        config: Config,
        ip: str,
        tid: int,
        gpu: bool,
        now: float,
        keys: Keys | None = None,
        *,
        follows: bool = False,
    ) -> None:
        """`follows`: another process was this executor before, and did not leave."""
        self.utilization = Utilization(now)
        self.functions: tuple[str, ...] = ()
        """What the next status says is pinned here."""
        self.running = True
        self.last_utilization = 0.0
        self._process = random.SystemRandom().getrandbits(64) if follows else 0
        self.reconnections = 0
        """How often those who send calls have connected anew."""
        self._config = config
        self._ip = ip
        self._tid = tid
        self._type = internal.GPU if gpu else internal.CPU
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = PushSockets(self._context, SOCKETS, host_names=False, keys=keys)
        # The management node's protocol knows no keys.
        self._mgmt = PushSockets(self._context, SOCKETS, host_names=False)
        self._complaints = Complaints(logger)
        self._functions: dict[str, _Times] = {}
        self._dags: dict[str, _Times] = {}
        self._closed = False

    def status(self) -> None:
        """Tell the schedulers what is pinned here."""
        with self._lock:
            self._send_status(0.0, mgmt=False)

    def ended(self) -> None:
        """Tell the schedulers that the process before this one ended, and what it held with it."""
        with self._lock:
            self.running = False
            self._send_status(0.0, mgmt=False)
            self.running = True

    def period(self, now: float) -> None:
        """Tell everybody how the last period was."""
        with self._lock:
            self.last_utilization = self.utilization.take(now)
            self._send_status(self.last_utilization, mgmt=bool(self._config.mgmt))
            functions, self._functions = self._functions, {}
            dags, self._dags = self._dags, {}
            if self._config.mgmt:
                statistics = _statistics(functions, dags)
                self._push(
                    tcp(self._config.mgmt, MGMT_STATISTICS), statistics.SerializeToString(), self._mgmt
                )

    def answer_pin(self, pin: internal.PinFunction, success: bool, error: cb.CloudburstError) -> None:
        """Tell the scheduler that asked for a pin what became of it; we name ourselves."""
        name = f"{self._ip}:{self._tid}/{pin.name}"
        answer = cb.GenericResponse(success=success, response_id=name, error=error)
        with self._lock:
            self._push(tcp(pin.response_address, PIN_ACCEPT), answer.SerializeToString())

    def departed(self) -> None:
        """Tell the management node that this executor has left."""
        with self._lock:
            if self._config.mgmt:
                self._push(tcp(self._config.mgmt, MGMT_DEPART), self._ip.encode(), self._mgmt)

    def function_ran(self, name: str, runtime_s: float) -> None:
        with self._lock:
            _add(self._functions, name, runtime_s)

    def dag_ended(self, name: str, runtime_s: float) -> None:
        """A call of a DAG has its result, so many seconds after the scheduler took it."""
        with self._lock:
            _add(self._dags, name, max(0.0, runtime_s))

    def close(self, linger_ms: int) -> None:
        """Send what waits, for so long at most, and give up the sockets. Again is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._sockets.close(linger_ms)
                self._mgmt.close(linger_ms)
                self._context.term()

    def _send_status(self, utilization: float, mgmt: bool) -> None:
        message = internal.ThreadStatus(
            ip=self._ip,
            tid=self._tid,
            functions=self.functions if self.running else (),
            utilization=utilization,
            running=self.running,
            type=self._type,
            process=self._process,
            reconnections=self.reconnections,
        ).SerializeToString()
        for ip in self._config.scheduler_ips:
            self._push(tcp(ip, STATUS), message)
        if mgmt:
            self._push(tcp(self._config.mgmt, MGMT_STATUS), message, self._mgmt)

    def _push(self, address: str, message: bytes, sockets: PushSockets | None = None) -> None:
        if self._closed:
            return
        try:
            if not (self._sockets if sockets is None else sockets).send(address, message):
                self._complaints.add("A report was dropped", f"{address} is not taking more")
        except BadMessageError as error:
            self._complaints.add("A report was dropped", error)


def _add(times: dict[str, _Times], name: str, runtime_s: float) -> None:
    if name in times or len(times) < NAMES:
        times.setdefault(name, _Times()).add(runtime_s)


def _statistics(functions: dict[str, _Times], dags: dict[str, _Times]) -> internal.ExecutorStatistics:
    return internal.ExecutorStatistics(
        functions=[
            internal.ExecutorStatistics.FunctionStatistics(
                name=name, call_count=times.count, runtime=times.runtimes
            )
            for name, times in functions.items()
        ],
        dags=[
            internal.ExecutorStatistics.DagStatistics(name=name, runtimes=times.runtimes)
            for name, times in dags.items()
        ],
    )
