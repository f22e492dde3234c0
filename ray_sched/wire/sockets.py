"""Sockets: one-way ones by address, and bound ones on ports that may be taken."""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

import zmq
import zmq.backend

from ray_sched.errors import BadMessageError, ConfigError, PortTakenError
from ray_sched.wire.addresses import ADDRESS, LITERAL_ADDRESS
from ray_sched.wire.curve import Keys

MAX_LINGERING: Final = 32
"""Sockets given up that may linger at once: each still holds its files."""
HIGH_WATER_MARK: Final = 10_000
"""Messages that may wait in a socket; there is no room for further ones."""
DONTWAIT: Final = int(zmq.DONTWAIT)
DONTWAIT_SNDMORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)
"""As numbers: pyzmq's enumerations cost as much as the sending. Its `recv_multipart` and `send_multipart`,
which make them for each part, cost twice and seven times as much as what is done here."""
send_part: Final = zmq.backend.Socket.send
"""`send_part(socket, bytes, flags)`: what `socket.send` comes to once it has looked for what no socket here
has (a routing id, a group), which takes longer than the sending. Raises as it does."""
receive_part: Final = zmq.backend.Socket.recv
"""`receive_part(socket, flags)`: the next part as bytes, or as a `Frame` with a third argument of False."""


def receive(socket: zmq.Socket[bytes], *first: bytes) -> list[bytes]:
    """All parts of the next message, behind those that were received. Raises zmq.Again when there is none."""
    frames = [*first]
    while True:
        # A `Frame` costs twice as much as bytes do, but knows whether it was the last.
        frame = receive_part(socket, DONTWAIT, False)
        frames.append(frame.bytes)
        if not frame.more:
            return frames


def receive_request(socket: zmq.Socket[bytes]) -> list[bytes]:
    """`receive` for a ROUTER, whose own first part, who asks, is never the last."""
    return receive(socket, receive_part(socket, DONTWAIT))


def batching_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context for a loop that sends many messages in one go.

    ZeroMQ's I/O thread sleeps when it has nothing to do, and each message that finds it asleep wakes it.
    As any thread that slept it would at once push the one that woke it off its core, write that single
    message, and sleep again: two switches and a system call for each. As a batch thread, which Linux
    lets everybody have, it takes a free core just as soon, but waits where there is none, and then
    writes all that has come together. (Source: sched(7); ZMQ_THREAD_SCHED_POLICY in the ZeroMQ manual.)
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    if _may_set_policy():
        context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
    return context


def _may_set_policy() -> bool:
    """Some sandboxes forbid it, and libzmq would abort the process there."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setscheduler(0, *before)
    except OSError:
        return False
    return True


class PushSockets:
    """PUSH sockets by address, at most `limit`, the one that was not used for longest given up first.

    Not thread-safe, as ZeroMQ's sockets are not.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        limit: int,
        *,
        host_names: bool = True,
        keys: Keys | None = None,
        given_up_linger_ms: int = 0,
    ) -> None:
        """`host_names` says whether addresses may have one; its look-up holds up the whole context.

        With `keys` all of them speak CURVE. What waits in a socket that makes room for another one may still
        go out until `given_up_linger_ms` have passed, unless many do so at once.
        """
        self._given_up_linger_ms = given_up_linger_ms
        self._lingering: deque[float] = deque(maxlen=MAX_LINGERING)
        """When the latest sockets were given up that way."""
        self._keys = keys
        self._pattern = ADDRESS if host_names else LITERAL_ADDRESS
        self._context = context
        self._limit = limit
        self._sockets: OrderedDict[str, tuple[zmq.Socket[bytes], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sockets)

    def send(self, address: str, message: bytes) -> bool:
        """Hand a message to the socket of an address, without waiting.

        False when its queue is full, or when the process has no room for another socket. Raises
        BadMessageError when the address, which a peer named, is not one to connect to.
        """
        return self.send_all(address, (message,)) == 1

    def send_all(self, address: str, messages: Iterable[bytes]) -> int:
        """`send` for several, in order: how many there was room for, from the first on."""
        found = self._sockets.get(address)
        if found is None:
            socket = self._connect(address)
            if socket is None:
                return 0
            found = self._sockets[address] = (socket, time.monotonic())
        self._sockets.move_to_end(address)
        socket = found[0]
        sent = 0
        try:
            for message in messages:
                send_part(socket, message, DONTWAIT)
                sent += 1
        except zmq.Again:
            pass
        return sent

    def has_room(self, address: str) -> bool:
        """Whether the socket of an address, if there is one, takes another message."""
        found = self._sockets.get(address)
        return found is None or bool(int(found[0].getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def drop(self, address: str, older_than: float = float("inf"), linger_ms: int = 0) -> None:
        """Give up an address's socket, if it was made before that time (s); what waits in it may still
        go out until `linger_ms` have passed."""
        found = self._sockets.get(address)
        if found is not None and found[1] < older_than:
            self._sockets.pop(address)[0].close(linger_ms)

    def close(self, linger_ms: int = 0) -> None:
        """Give up all sockets; what waits in them may still go out until `linger_ms` have passed."""
        while self._sockets:
            self._sockets.popitem()[1][0].close(linger_ms)

    def _connect(self, address: str) -> zmq.Socket[bytes] | None:
        parts = self._pattern.fullmatch(address)
        if parts is None or not 0 < int(parts[2]) < 1 << 16 or (parts[3] and self._keys is None):
            raise BadMessageError(f"{address[:300]!r} is not an address like tcp://127.0.0.1:6460")
        if len(self._sockets) >= self._limit:
            self._give_up_oldest(self._linger_ms())
        try:
            socket: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        except zmq.ZMQError:
            # Out of file descriptors: the oldest socket's come back in a moment.
            self._give_up_oldest(0)
            return None
        socket.linger = 0
        socket.sndhwm = HIGH_WATER_MARK
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            if self._keys is not None:
                self._keys.connect(socket, int(parts[2]), parts[3] or "")
            socket.connect(f"tcp://{parts[1]}:{parts[2]}")
        except zmq.ZMQError as error:
            socket.close(0)
            raise BadMessageError(f"cannot connect to {address}: {error}") from error
        except BadMessageError:
            socket.close(0)
            raise
        return socket

    def _linger_ms(self) -> int:
        now, lingering = time.monotonic(), self._lingering
        if len(lingering) == MAX_LINGERING and now - lingering[0] < self._given_up_linger_ms / 1000:
            return 0
        lingering.append(now)
        return self._given_up_linger_ms

    def _give_up_oldest(self, linger_ms: int) -> None:
        if self._sockets:
            self._sockets.popitem(last=False)[1][0].close(linger_ms)


def bind_pull(
    context: zmq.Context[zmq.Socket[bytes]],
    ip: str,
    port: int,
    holders: str,
    *,
    max_message_bytes: int = -1,
    keys: Keys | None = None,
    admits: str = "",
) -> zmq.Socket[bytes]:
    """`bind` for a PULL socket."""
    return bind(
        context, zmq.PULL, ip, port, holders, max_message_bytes=max_message_bytes, keys=keys, admits=admits
    )


def bind(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    ip: str,
    port: int,
    holders: str,
    *,
    max_message_bytes: int = -1,
    keys: Keys | None = None,
    admits: str = "",
) -> zmq.Socket[bytes]:
    """A socket of that kind bound to that port of that address alone.

    With `keys` it speaks CURVE, and takes messages from those alone whom `admits` names (see `curve`).
    Raises PortTakenError, which names `holders` as those who could have the port, or ConfigError
    when the machine has no such address.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.linger = 0
    socket.rcvhwm = socket.sndhwm = HIGH_WATER_MARK
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    if keys is not None:
        keys.bind(socket, admits)
    try:
        socket.bind(f"tcp://{ip}:{port}")
    except zmq.ZMQError as error:
        socket.close(0)
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"port {port} of {ip} is taken; {holders} could hold it") from error
        raise ConfigError(
            f"cannot listen on port {port} of {ip!r}: {error}; is it an address of this machine?"
        ) from error
    return socket
