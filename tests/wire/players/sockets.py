"""Sockets that tests can share between threads: what goes out, and what came in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

import zmq

FLUSH_MS: Final = 2000
"""How long a closed socket goes on sending what it was given, in milliseconds."""


class NothingCameError(AssertionError):
    """What a test waited for did not arrive in time; the message tells what did."""


class Pusher:
    """PUSH sockets by address. To one address everything arrives in the order in which it was sent."""

    def __init__(self) -> None:
        self._sockets: dict[str, zmq.SyncSocket] = {}
        self._lock = threading.Lock()

    def push(self, address: str, raw: bytes) -> None:
        with self._lock:
            socket = self._sockets.get(address)
            if socket is None:
                socket = zmq.Context.instance().socket(zmq.PUSH)
                socket.setsockopt(zmq.LINGER, FLUSH_MS)
                socket.connect(address)
                self._sockets[address] = socket
            socket.send(raw, zmq.NOBLOCK)

    def close(self) -> None:
        with self._lock:
            for socket in self._sockets.values():
                socket.close()
            self._sockets.clear()


class Mailbox:
    """Binds addresses, hears all of them in one thread, and keeps what came in, in order of arrival.

    `binds` are addresses by the name of what arrives there; a port 0 takes a free one, which
    `address` then tells. `on_message` runs in the mailbox's thread before the message can be waited for;
    what it returns is the answer to a request on an address in `replies`. What it raises fails the
    next wait, or else `close`.
    """

    def __init__(
        self,
        binds: Mapping[str, str],
        on_message: Callable[[str, bytes], bytes | None] | None = None,
        *,
        replies: frozenset[str] = frozenset(),
    ) -> None:
        self._on_message = on_message
        self._arrived: list[tuple[str, bytes]] = []
        self._news = threading.Condition()
        self._failure: BaseException | None = None
        self._sockets: dict[zmq.SyncSocket, str] = {}
        self.address: dict[str, str] = {}
        # Its own context: ending one waits until the addresses are really free again.
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._stopped = self._context.socket(zmq.PAIR)
        self._stopped.bind("inproc://stop")
        self._stopper = self._context.socket(zmq.PAIR)
        self._stopper.connect("inproc://stop")
        try:
            for kind, address in binds.items():
                socket = self._context.socket(zmq.REP if kind in replies else zmq.PULL)
                socket.setsockopt(zmq.LINGER, 0)
                self._sockets[socket] = kind
                socket.bind(address)
                self.address[kind] = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except zmq.ZMQError as error:
            self._close_sockets()
            self._stopper.close()
            self._context.term()
            raise OSError(f"cannot bind {address} for {kind}: {error}") from error
        self._thread = threading.Thread(target=self._hear, name=f"mailbox {self.address}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def all(self, kind: str) -> list[bytes]:
        """What has arrived of that kind so far."""
        with self._news:
            return [raw for name, raw in self._arrived if name == kind]

    def order(self) -> list[str]:
        """The kinds of all messages so far, in order of arrival."""
        with self._news:
            return [name for name, _ in self._arrived]

    def clear(self) -> None:
        with self._news:
            self._arrived.clear()

    def wait_for(
        self,
        kind: str,
        count: int = 1,
        *,
        where: Callable[[bytes], bool] = lambda raw: True,
        timeout_s: float = 10.0,
    ) -> list[bytes]:
        """The first messages of that kind that fit, once there are `count` of them.

        Raises `NothingCameError` after `timeout_s`, and what went wrong in the mailbox's thread.
        """

        def fitting() -> list[bytes]:
            return [raw for name, raw in self._arrived if name == kind and where(raw)]

        with self._news:
            self._news.wait_for(lambda: self._failure or len(fitting()) >= count, timeout_s)
            if self._failure is not None:
                raise self._failure
            if len(fitting()) < count:
                raise NothingCameError(
                    f"{count} fitting {kind} messages were awaited {timeout_s} s at {self.address[kind]}; "
                    f"{len(fitting())} came, among {[name for name, _ in self._arrived]}"
                )
            return fitting()

    def close(self) -> None:
        if not self._stopper.closed:
            self._stopper.send(b"")
            self._thread.join()
            self._stopper.close()
            self._context.term()
            if self._failure is not None:
                raise self._failure

    def _hear(self) -> None:
        poller = zmq.Poller()
        for socket in (*self._sockets, self._stopped):
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = [socket for socket, _ in poller.poll()]
                if self._stopped in ready:
                    break
                for socket in ready:
                    self._receive(socket)
        finally:
            self._close_sockets()

    def _receive(self, socket: zmq.SyncSocket) -> None:
        kind = self._sockets[socket]
        raw = socket.recv()
        answer = None
        # Played and stored in one: whoever sees the message sees what the play made of it, and whoever
        # heard the play's answer finds the message.
        with self._news:
            try:
                if self._on_message is not None:
                    answer = self._on_message(kind, raw)
            except Exception as error:
                self._failure = error
            if socket.type == zmq.REP:
                socket.send(answer or b"")
            self._arrived.append((kind, raw))
            self._news.notify_all()

    def _close_sockets(self) -> None:
        for socket in (*self._sockets, self._stopped):
            socket.close()
