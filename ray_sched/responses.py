"""Direct responses: results that executors push to the caller instead of into the key-value store.

A direct response carries no id, so what tells it apart is the socket that it arrives at.
Rule 1: each waiting call has a socket, and so a port, of its own.
Rule 2: a socket is used again only after exactly one response to its one call, and a rest in which a
second one (a DAG may have two sinks) would have shown. After anything else it is closed.
Rule 3: the port of a closed socket is not bound again: who still has a late answer for it goes on trying.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

import zmq

from ray_sched.errors import BadMessageError, ConfigError, NoResourcesError, NotRunningError, TimedOutError
from ray_sched.wire.curve import FROM_EXECUTORS, Guard, Keys

logger = logging.getLogger(__name__)

CLOSED_PORTS: Final = 8192
"""How many closed ports are remembered, the latest first; Linux has 28,000 ephemeral ones."""
BIND_TRIES: Final = 50
MAX_RESPONSE_BYTES: Final = 1 << 29
"""The connection of whoever sends a larger one is closed."""
CLOSING_S: Final = 1.0
"""How long a call waits for closed sockets to be gone, where there is room for no other one."""
_SETTLE_S: Final = 5.0


class PendingResponse(concurrent.futures.Future[bytes]):
    """The response to one call, made by `ResponsePool.lease`.

    As a future it has the response's bytes (a serialized `Value`), BadMessageError when something came that
    is no response, or NotRunningError when the pool was closed. Callbacks run in the pool's thread, which
    they must not block. One that nobody waits for any more has to be cancelled.
    """

    def __init__(self, pool: ResponsePool, slot: _Slot) -> None:
        super().__init__()
        self._pool = pool
        self._slot = slot
        self.address = pool._keys.answers_at(slot.address) if pool._keys is not None else slot.address
        """What to name as the call's `response_address`: `tcp://ip:port`, and its key if it has one."""

    def wait(self, timeout_s: float) -> bytes:
        """The response's bytes. After a time-out the lease has ended, and a late response is lost.

        Raises:
            TimedOutError: no response within `timeout_s` seconds, or the lease was cancelled.
            BadMessageError, NotRunningError: see above.
        """
        try:
            return self.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise TimedOutError(f"nobody waits for a direct response at {self.address} any more") from None
        except concurrent.futures.TimeoutError:
            if not self.cancel():  # it came at the last moment
                return self.result(_SETTLE_S)
            raise TimedOutError(f"no direct response came to {self.address} within {timeout_s:g} s") from None

    def cancel(self) -> bool:
        """End the lease; false when the response is there already."""
        cancelled = super().cancel()
        if cancelled:
            self._pool._end_lease(self._slot, self)
        return cancelled

    def fail(self, error: BaseException) -> None:
        """End the lease with an error, unless the response is there already: it will not come."""
        if self._pool._end_lease(self._slot, self) and self.set_running_or_notify_cancel():
            self.set_exception(error)

    def abandon(self) -> None:
        """Cancel it at the next lease. Takes no lock, and so may be called where garbage is collected."""
        self._pool._abandoned.append(self)


class _Slot:
    """A socket, and the call that it is leased to."""

    def __init__(self, socket: zmq.Socket[bytes], address: str) -> None:
        self.socket = socket
        self.address = address
        self.pending: PendingResponse | None = None
        self.usable_at = 0.0
        self.discarded = False


class ResponsePool:
    """Sockets for direct responses at ephemeral ports of `ip`; thread-safe, one thread reads them all.

    At most `max_waiting` calls wait at once. A socket rests for `rest_s` seconds before its next call.
    """

    def __init__(
        self, ip: str, *, max_waiting: int = 128, rest_s: float = 0.1, keys: Keys | None = None
    ) -> None:
        self.ip = ip
        self._max_waiting = max_waiting
        self._rest_s = rest_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 3 * max_waiting + 64)
        self._keys = keys
        self._guard = Guard(self._context, keys)
        self._lock = threading.Lock()
        self._waiting = 0
        self._idle: deque[_Slot] = deque()  # the one that has rested longest first
        self._opened: list[_Slot] = []
        self._discarded: list[_Slot] = []
        self._abandoned: deque[PendingResponse] = deque()
        self._closed_ports: OrderedDict[str, None] = OrderedDict()
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"responses-{ip}", daemon=True)
        self._thread.start()

    def lease(self) -> PendingResponse:
        """A place for one response.

        Raises:
            NoResourcesError: `max_waiting` calls wait already, or there is no socket left.
            ConfigError: `ip` is no address of this machine.
            NotRunningError: the pool is closed.
        """
        until = time.monotonic() + CLOSING_S
        while True:
            self._cancel_abandoned()
            pending = self._lease(time.monotonic() > until)
            if pending is not None:
                return pending
            time.sleep(0.001)  # ZeroMQ closes sockets in a thread of its own, which tells nobody

    def _lease(self, at_last: bool) -> PendingResponse | None:
        """None where there is no room for a socket, which is an error at last."""
        with self._lock:
            if self._closed:
                raise _closed_error()
            if self._waiting >= self._max_waiting:
                raise NoResourcesError(
                    f"{self._waiting} direct responses are waited for already: take their results first, or "
                    "let results go through the key-value store"
                )
            if self._idle and self._idle[0].usable_at <= time.monotonic():
                slot = self._idle.popleft()
            else:
                opened = self._open(at_last)
                if opened is None:
                    return None
                slot = opened
                self._opened.append(slot)
                os.eventfd_write(self._wake, 1)
            self._waiting += 1
            slot.pending = PendingResponse(self, slot)
            return slot.pending

    def close(self, timeout_s: float = 5.0) -> None:
        """Fail what waits with NotRunningError, free the ports, end the thread. Again is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _cancel_abandoned(self) -> None:
        # Not `while self._abandoned`: between the look and the take, another thread may have the last one.
        with contextlib.suppress(IndexError):
            while True:
                self._abandoned.popleft().cancel()

    def _open(self, at_last: bool) -> _Slot | None:
        for _ in range(BIND_TRIES):
            try:
                socket: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
            except zmq.ZMQError as error:
                if error.errno == errno.EMFILE and not at_last:
                    return None
                raise NoResourcesError(f"no socket is left for a direct response: {error}") from error
            socket.linger = 0
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_RESPONSE_BYTES)
            if self._keys is not None:
                self._keys.bind(socket, FROM_EXECUTORS)
            try:
                socket.bind(f"tcp://{self.ip}:*")
            except zmq.ZMQError as error:
                socket.close(0)
                raise ConfigError(
                    f"cannot listen on {self.ip!r}: {error}; is it an address of this machine?"
                ) from error
            address = str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
            if address not in self._closed_ports:
                return _Slot(socket, address)
            socket.close(0)
        raise NoResourcesError(f"{self.ip} has no port left that no late response could come to: try again")

    def _end_lease(self, slot: _Slot, pending: PendingResponse) -> bool:
        """Whether it had not ended: then the caller alone settles it."""
        with self._lock:
            if slot.pending is not pending:
                return False
            slot.pending = None
            self._waiting -= 1
            self._discard(slot)
            return True

    def _discard(self, slot: _Slot) -> None:
        """Have the thread close the socket. Needs the lock."""
        if slot.discarded or self._closed:
            return
        slot.discarded = True
        if slot in self._idle:
            self._idle.remove(slot)
        self._discarded.append(slot)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        slots: dict[zmq.Socket[bytes], _Slot] = {}
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        try:
            while not self._closed:
                for source, _ in poller.poll():
                    if source == self._wake:
                        os.eventfd_read(self._wake)
                    else:
                        self._take(slots[source])
                with self._lock:
                    opened, self._opened = self._opened, []
                    discarded, self._discarded = self._discarded, []
                for slot in opened:
                    slots[slot.socket] = slot
                    poller.register(slot.socket, zmq.POLLIN)
                for slot in discarded:
                    del slots[slot.socket]
                    poller.unregister(slot.socket)
                    slot.socket.close(0)
                self._remember(discarded)
        except Exception:
            logger.exception("The thread for direct responses ends: what waits for one fails.")
        finally:
            self._fail_all(slots.values())

    def _take(self, slot: _Slot) -> None:
        messages = _receive_all(slot.socket)
        if not messages:
            return
        clean = len(messages) == 1 and len(messages[0]) == 1
        with self._lock:
            pending, slot.pending = slot.pending, None
            if pending is not None:
                self._waiting -= 1
            if pending is not None and clean and len(self._idle) < self._max_waiting:
                slot.usable_at = time.monotonic() + self._rest_s
                self._idle.append(slot)
            else:
                self._discard(slot)
        if pending is not None and pending.set_running_or_notify_cancel():
            if len(messages[0]) == 1:
                pending.set_result(messages[0][0])
            else:
                pending.set_exception(
                    BadMessageError(f"a direct response of {len(messages[0])} parts came to {slot.address}")
                )

    def _remember(self, discarded: list[_Slot]) -> None:
        with self._lock:
            for slot in discarded:
                self._closed_ports[slot.address] = None
            while len(self._closed_ports) > CLOSED_PORTS:
                self._closed_ports.popitem(last=False)

    def _fail_all(self, slots: Iterable[_Slot]) -> None:
        with self._lock:
            self._closed = True
            os.close(self._wake)
            waiting: list[PendingResponse] = []
            for slot in (*slots, *self._opened):
                if slot.pending is not None:
                    waiting.append(slot.pending)
                    slot.pending = None
        self._guard.close()
        self._context.destroy(0)
        for pending in waiting:
            if pending.set_running_or_notify_cancel():
                pending.set_exception(_closed_error())


def _receive_all(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    while len(messages) < 2:  # a second one is one too many already
        try:
            messages.append(socket.recv_multipart(zmq.DONTWAIT))
        except zmq.Again:
            break
    return messages


def _closed_error() -> NotRunningError:
    return NotRunningError("direct responses are not taken any more: what waited for them was closed")
