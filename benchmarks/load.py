"""The load generator: clients that ask again as soon as they are answered, all in this one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq

STALL_MS: Final = 5000
"""A server that answers none of its clients for so long is taken for dead."""


@dataclass(frozen=True)
class Measurement:
    """What one load came to, without its warm-up."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float
    calls: int
    refused: int
    """Answered, but not with success: such a measurement says nothing."""
    sent: int
    """Calls in all, warm-up and last ones included."""


class StalledError(RuntimeError):
    """The server stopped answering."""


def run(
    address: str,
    request: bytes,
    clients: int,
    duration_s: float,
    *,
    warm_up_s: float,
    succeeded: Callable[[bytes], bool] = lambda reply: True,
) -> Measurement:
    """Closed loop of `clients` connections for `duration_s` after `warm_up_s`. Raises StalledError.

    Each client is a DEALER that talks as a REQ socket does (an empty frame in front), which spares this
    process what REQ checks, so that more of the machine is left for what is measured.
    """
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(clients)]
    for socket in sockets:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, STALL_MS)
        socket.connect(address)
    gc.collect()
    gc.disable()
    try:
        finished_at, latencies_s, refused = _closed_loop(
            sockets, [b"", request], warm_up_s + duration_s, succeeded
        )
    except zmq.Again:
        raise StalledError(f"{address} answered none of {clients} clients for {STALL_MS} ms") from None
    finally:
        gc.enable()
        for socket in sockets:
            socket.close()
        context.term()
    began = finished_at[0] - latencies_s[0]
    kept = [
        (at, latency)
        for at, latency in zip(finished_at, latencies_s, strict=True)
        if warm_up_s <= at - began <= warm_up_s + duration_s
    ]
    if len(kept) < 2:
        raise StalledError(f"{address} answered {len(kept)} calls in {duration_s} s: measure for longer")
    quantiles = statistics.quantiles((latency for _, latency in kept), n=100, method="inclusive")
    return Measurement(
        calls_per_s=len(kept) / duration_s,
        p50_ms=quantiles[49] * 1e3,
        p99_ms=quantiles[98] * 1e3,
        calls=len(kept),
        refused=refused,
        sent=len(latencies_s),
    )


def _closed_loop(
    sockets: list[zmq.SyncSocket],
    request: list[bytes],
    seconds: float,
    succeeded: Callable[[bytes], bool],
) -> tuple[list[float], list[float], int]:
    """When each call ended, how long it took, and how many were refused. Raises zmq.Again on a stall."""
    clock = time.perf_counter
    finished_at: list[float] = []
    latencies: list[float] = []
    refused = 0
    end = clock() + seconds
    if len(sockets) == 1:
        socket = sockets[0]
        while (began := clock()) < end:
            socket.send_multipart(request)
            reply = socket.recv_multipart()[1]
            now = clock()
            finished_at.append(now)
            latencies.append(now - began)
            if not succeeded(reply):
                refused += 1
        return finished_at, latencies, refused
    poller = zmq.Poller()
    asked_at: dict[zmq.SyncSocket, float] = {}
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
        asked_at[socket] = clock()
        socket.send_multipart(request)
    waiting = len(sockets)
    while waiting:
        ready = poller.poll(STALL_MS)
        if not ready:
            raise zmq.Again
        for socket, _ in ready:
            reply = socket.recv_multipart()[1]
            now = clock()
            finished_at.append(now)
            latencies.append(now - asked_at[socket])
            if not succeeded(reply):
                refused += 1
            if now < end:
                asked_at[socket] = now
                socket.send_multipart(request)
            else:
                waiting -= 1  # every request is answered before its socket goes
    return finished_at, latencies, refused
