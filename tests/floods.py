"""More than a port can serve, sent by somebody who does not wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import zmq

from ray_sched.wire import ports

UNDER_WAY: Final = 4000
"""Requests without an answer at the most: many times what the Scheduler has to answer at once."""
FIRST: Final = 2000
"""Messages that are sent before anybody else asks for something."""
WAIT_MS: Final = 30_000


@contextmanager
def flood(host: str, port: int, body: bytes) -> Iterator[None]:
    """Sends to a port as fast as it takes it, without waiting for answers, for as long as this is open.

    Ends with the last answer, so that nothing of it is left for the next test: each request has one.
    """
    begun, stop = threading.Event(), threading.Event()
    unanswered = 0

    def send() -> None:
        nonlocal unanswered
        sent = 0
        with zmq.Context() as context:
            asks = port in ports.REQUEST_PORTS
            socket = context.socket(zmq.DEALER if asks else zmq.PUSH)
            socket.linger = socket.rcvhwm = 0
            socket.connect(ports.tcp(host, port))
            while not stop.is_set():
                try:
                    for _ in range(min(100, UNDER_WAY - unanswered) if asks else 100):
                        socket.send_multipart([b"", body] if asks else [body], zmq.DONTWAIT)
                        unanswered += asks
                        sent += 1
                except zmq.Again:
                    socket.poll(10, zmq.POLLOUT)
                while asks and socket.poll(10 if unanswered == UNDER_WAY else 0):
                    socket.recv_multipart()
                    unanswered -= 1
                if sent >= FIRST:
                    begun.set()
            while unanswered and socket.poll(WAIT_MS):
                socket.recv_multipart()
                unanswered -= 1
            socket.close(0)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert begun.wait(WAIT_MS / 1000)
        yield
    finally:
        stop.set()
        thread.join()
    assert unanswered == 0
