"""Who connects to a port of an executor thread, and whether it had been connected before."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

import zmq

EVENTS: Final = int(zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
"""What the port's monitor is to tell."""
EVENT: Final = struct.Struct("=HI")
"""What a monitor tells first: which event, and of most its connection's file descriptor."""
PEERS_KEPT: Final = 1000
"""Addresses for each port that are known to have been connected to it."""


class Connections:
    """Who was connected to a port, by IP address, out of what its monitor tells.

    A connection counts once both ends have shaken hands: others look whether a port is open. Of that the
    monitor does not tell which connection it was; so it was the one that has waited for longest.
    """

    def __init__(self) -> None:
        self._accepted: dict[int, str] = {}
        self._peers: dict[str, None] = {}

    def is_reconnection(self, told: bytes) -> bool:
        """Take in the first part of what the monitor tells; whether it is that an address was connected that
        had been before."""
        event, descriptor = EVENT.unpack(told)
        if event == zmq.EVENT_ACCEPTED:
            self._accepted[descriptor] = _peer_of(descriptor)
        elif event == zmq.EVENT_DISCONNECTED:
            self._accepted.pop(descriptor, None)
        elif self._accepted:
            peer = self._accepted.pop(next(iter(self._accepted)))
            if peer in self._peers or not peer:
                return True
            if len(self._peers) < PEERS_KEPT:
                self._peers[peer] = None
        return False


def _peer_of(descriptor: int) -> str:
    """The IP address at the other end of a connection of this process; "" where it has ended."""
    copy = -1
    try:
        copy = os.dup(descriptor)
        with socket.socket(fileno=copy) as connection:
            copy = -1
            return str(connection.getpeername()[0])
    except OSError:
        return ""
    finally:
        if copy >= 0:
            os.close(copy)
