"""What leaves an executor thread for other executors, clients and schedulers, without waiting."""

from __future__ import annotations

import threading
from typing import Final

import zmq

from ray_sched.errors import NoResourcesError
from ray_sched.wire.curve import Keys
from ray_sched.wire.sockets import PushSockets

GIVEN_UP_LINGER_MS: Final = 1000
SOCKETS: Final = 512
"""Addresses that are kept connected; the one that was not used for longest goes first."""


class Outbox:
    """Messages by address. Thread-safe, since functions may start threads that send, too."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None = None) -> None:
        # Peers name the addresses: to look a host name up would hold up everybody's messages.
        self._sockets = PushSockets(
            context, SOCKETS, host_names=False, keys=keys, given_up_linger_ms=GIVEN_UP_LINGER_MS
        )
        self._lock = threading.Lock()

    def send(self, address: str, message: bytes) -> None:
        """Hand a message to an address.

        Raises NoResourcesError when it is not taking more, BadMessageError when it is no address.
        """
        with self._lock:
            sent = self._sockets.send(address, message)
        if not sent:
            raise NoResourcesError(f"{address} is not taking more messages")

    def close(self, linger_ms: int) -> None:
        """Give up all sockets; what waits in them may still go out until `linger_ms` have passed."""
        with self._lock:
            self._sockets.close(linger_ms)
