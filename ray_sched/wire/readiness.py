"""Which of many ZeroMQ sockets have something to read."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Final

import zmq
import zmq.backend

_option: Final = zmq.backend.Socket.get
"""`socket.getsockopt` without its enumerations, which cost more than the looking."""
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Whether there is one to receive. To try costs three times as much where there is none."""
    return bool(int(_option(socket, _EVENTS)) & _POLLIN)


class Readiness:
    """Which sockets may have something, for the price of one look, however many there are.

    A ZeroMQ socket has a file descriptor that becomes readable when something happened to it. That is
    said once: after anything is sent or received on the socket, it says nothing of what came before.
    So a socket has to be read until it has no more, and `check` names one that was written to
    elsewhere. (Source: ZMQ_FD in the ZeroMQ manual.)
    """

    def __init__(self, sockets: Iterable[zmq.Socket[bytes]], wake_fd: int) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, zmq.Socket[bytes]] = {}
        for socket in sockets:
            fd = int(socket.getsockopt(zmq.FD))
            self._by_fd[fd] = socket
            self._epoll.register(fd, select.EPOLLIN)
        self._epoll.register(wake_fd, select.EPOLLIN)
        self._wake_fd = wake_fd
        self._to_check: dict[zmq.Socket[bytes], None] = dict.fromkeys(self._by_fd.values())

    def check(self, socket: zmq.Socket[bytes]) -> None:
        """Look at this socket the next time, too."""
        self._to_check[socket] = None

    def check_all(self) -> None:
        self._to_check.update(dict.fromkeys(self._by_fd.values()))

    def wait(self, timeout_s: float) -> tuple[list[zmq.Socket[bytes]], bool]:
        """The sockets to read now, and whether the wake-up descriptor is readable."""
        ready, self._to_check = self._to_check, {}
        woken = False
        for fd, _ in self._epoll.poll(0 if ready else timeout_s):
            if fd == self._wake_fd:
                woken = True
            else:
                ready[self._by_fd[fd]] = None
        return list(ready), woken

    def leave(self, socket: zmq.Socket[bytes]) -> bool:
        """Say no more of a socket that is not to be read now, until `check`; whether it has something."""
        return has_message(socket)  # which takes the word that its descriptor has for us

    def close(self) -> None:
        self._epoll.close()
