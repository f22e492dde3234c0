"""Requests to a scheduler's ports and their replies, over ZeroMQ REQ sockets.

Rule 1: a request that changes or starts something is sent once. Only what merely reads is sent
again, on a further socket, while the earlier one is still listened to: the first reply counts.
Rule 2: a socket serves one request at a time, and is closed when that request was not answered, so
that a late reply meets nobody.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

import zmq

from ray_sched.errors import BadMessageError, NotRunningError, TimedOutError
from ray_sched.wire.curve import Keys
from ray_sched.wire.ports import tcp

IDLE_SOCKETS: Final = 8
"""Sockets for each port that are kept for the next request."""
READ_TRIES: Final = 3


class Requester:
    """Asks one scheduler. Thread-safe; requests of different threads do not wait for each other."""

    def __init__(self, host: str, keys: Keys | None = None) -> None:
        self.host = host
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lock = threading.Lock()
        self._idle: dict[int, list[zmq.Socket[bytes]]] = {}
        self._closed = False
        self._pid = os.getpid()
        self._ending = threading.Thread(target=self._context.term, name="requester-end", daemon=True)

    def ask(self, port: int, parts: list[bytes], what: str, *, timeout_s: float) -> list[bytes]:
        """The reply's parts to a request that is sent once; `what` names it in errors.

        Raises:
            TimedOutError: no reply within `timeout_s` seconds; the request may have been carried out.
            BadMessageError: the reply has more than two parts.
            NotRunningError: this is closed, or `host` is no address.
        """
        return self._ask(port, parts, what, timeout_s, tries=1)

    def read(self, port: int, parts: list[bytes], what: str, *, timeout_s: float) -> list[bytes]:
        """As `ask`, for what may be sent up to three times within `timeout_s`."""
        return self._ask(port, parts, what, timeout_s, tries=READ_TRIES)

    def close(self, timeout_s: float = 5.0) -> None:
        """End all requests under way with NotRunningError. Again is harmless."""
        with self._lock:
            self._closed = True
            for sockets in self._idle.values():
                for socket in sockets:
                    socket.close(0)
            self._idle.clear()
            if self._ending.ident is None:
                self._ending.start()
        # Sockets in use belong to their threads, which are woken by this and close them. One that Ctrl-C came
        # upon, just as it was made or put back, is closed by nobody: not to be waited for without end.
        self._ending.join(timeout_s)

    def _ask(self, port: int, parts: list[bytes], what: str, timeout_s: float, tries: int) -> list[bytes]:
        if os.getpid() != self._pid:
            raise NotRunningError(f"{what}: a client does not outlive a fork: connect in the new process")
        sockets: list[zmq.Socket[bytes]] = []
        poller = zmq.Poller()
        started = time.monotonic()
        try:
            for number in range(1, tries + 1):
                sockets.append(self._socket(port))
                poller.register(sockets[-1], zmq.POLLIN)
                sockets[-1].send_multipart(parts, zmq.DONTWAIT)
                until = started + timeout_s * number / tries
                ready = poller.poll(max(0, int((until - time.monotonic()) * 1000) + 1))
                if ready:
                    answered: zmq.Socket[bytes] = ready[0][0]
                    reply = answered.recv_multipart(zmq.DONTWAIT)
                    sockets.remove(answered)
                    self._keep(port, answered)
                    break
            else:
                raise TimedOutError(
                    f"{what}: no reply from {tcp(self.host, port)} within {timeout_s:g} s: is the scheduler "
                    f"running, and reachable from here? {self._about_keys()}"
                )
        except zmq.ContextTerminated:
            raise NotRunningError(f"{what}: the client was closed") from None
        finally:
            for socket in sockets:
                socket.close(0)
        if len(reply) > 2:
            raise BadMessageError(f"{what}: a reply of {len(reply)} parts from {tcp(self.host, port)}")
        return reply

    def _about_keys(self) -> str:
        """A scheduler says nothing to whom it does not admit."""
        if self._keys is None:
            return "If it admits holders of keys alone, connect with keys=FOLDER"
        ours = self._keys.public.decode()
        return (
            f"Does it use keys (security.curve), has it its key still, and is ours, {ours}, "
            "among its clients'?"
        )

    def _socket(self, port: int) -> zmq.Socket[bytes]:
        with self._lock:
            if self._closed:
                raise NotRunningError("the client is closed")
            if idle := self._idle.get(port):
                return idle.pop()
            socket: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        # A reply to what an earlier life of the scheduler was asked is recognized and dropped.
        socket.setsockopt(zmq.REQ_CORRELATE, 1)
        socket.setsockopt(zmq.REQ_RELAXED, 1)
        socket.linger = 0
        try:
            if self._keys is not None:
                self._keys.connect(socket, port)
            socket.connect(tcp(self.host, port))
        except zmq.ZMQError as error:
            socket.close(0)
            raise NotRunningError(f"cannot connect to {tcp(self.host, port)}: {error}") from error
        return socket

    def _keep(self, port: int, socket: zmq.Socket[bytes]) -> None:
        with self._lock:
            idle = self._idle.setdefault(port, [])
            if not self._closed and len(idle) < IDLE_SOCKETS:
                idle.append(socket)
                return
        socket.close(0)
