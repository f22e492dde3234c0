"""More calls than can be scheduled: what becomes of those that are accepted, and how soon the others hear.

    python -m benchmarks.overload [--load references] [--seconds 4]

An open loop: calls are sent at a fixed rate, whether earlier ones were answered or not, at 1, 2 and 5 times
the rate that clients who wait for their answers reach. Meanwhile one client lists functions, twenty times a
second: a flood on one port is not to starve another.

The load "references" is a call whose decision is costly (the locality of forty keys) and whose messages are
few, so that the scheduler is what is saturated, and not the played executors or the load generator beside it.
With the others these share the cores: "loop" is the share of a core that the ingress's loop got, in the
closed loop that finds the peak and in the open one; what it did not get, it could not decide in.

The last row of the open loop is a control: as many calls as in the row before, of which all above the peak go
to a process that refuses everything. What the scheduler accepts there it could accept at that rate if
refusals were free, on this machine.

A closed loop, too: 1, 2 and 5 times as many clients as reach the peak, each of which waits for its answer
and then asks again, as the legacy client does.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import psutil
import zmq
import zmq.backend

from benchmarks import load, payloads
from benchmarks.helper import Helper
from benchmarks.scheduler import Scheduler
from ray_sched.reference import CloudburstReference
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.ports import DAG_CALL, LIST, tcp

SCHEDULER_IP: Final = "127.0.17.71"
EXECUTORS_IP: Final = "127.0.17.72"
REFUSER_IP: Final = "127.0.17.73"
TIMES: Final = (1, 2, 5)
CONNECTIONS: Final = 100
CLIENTS: Final = 64
"""Of the closed loop that finds the peak."""
DRAIN_S: Final = 5.0
DONTWAIT: Final = int(zmq.DONTWAIT)
MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)


def _references(count: int) -> bytes:
    call = cb.DagCall.FromString(payloads.dag_call(1))
    keys = tuple(CloudburstReference(f"key {number}") for number in range(count))
    call.function_args[payloads.function_name(0)].values.add(body=pickle.dumps(keys))
    return call.SerializeToString()


LOADS: Final = {
    "references": _references(40),
    "chain of 3": payloads.dag_call(3),
    "chain of 10": payloads.dag_call(10),
}


class Outcome(NamedTuple):
    """Of one rate. Latencies are in ms."""

    offered_per_s: float
    accepted_per_s: float
    accepted_p50: float
    accepted_p99: float
    refused_per_s: float
    refused_p50: float
    refused_p99: float
    unanswered: int


def open_loop(addresses: Sequence[str], request: bytes, rate: float, seconds: float) -> Outcome:
    """Send `rate` calls a second for so long, to each address in turn, then wait for the answers that are
    still to come."""
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(CONNECTIONS)]
    poller = zmq.Poller()
    for socket, address in zip(sockets, itertools.cycle(addresses), strict=False):
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.connect(address)
        poller.register(socket, zmq.POLLIN)
    send, receive = zmq.backend.Socket.send, zmq.backend.Socket.recv
    clock = time.perf_counter
    sent_at: list[float] = []
    accepted: list[float] = []
    refused: list[float] = []
    began = clock()
    end = began + seconds
    unsent = True
    while unsent or (len(accepted) + len(refused) < len(sent_at) and clock() < end + DRAIN_S):
        now = clock()
        unsent = now < end
        due = int((min(now, end) - began) * rate)
        for number in range(len(sent_at), min(due, len(sent_at) + 500)):
            socket = sockets[number % CONNECTIONS]
            sent_at.append(clock())
            send(socket, b"%d" % number, MORE)
            send(socket, b"", MORE)
            send(socket, request, DONTWAIT)
        for socket, _ in poller.poll(0 if len(sent_at) < due else 1):
            try:
                while True:
                    number = int(receive(socket, DONTWAIT))
                    receive(socket, DONTWAIT)
                    reply = receive(socket, DONTWAIT)
                    taken = accepted if payloads.succeeded(reply) else refused
                    taken.append((clock() - sent_at[number]) * 1e3)
            except zmq.Again:
                continue
    took = min(clock(), end) - began
    for socket in sockets:
        socket.close()
    context.term()
    return Outcome(
        len(sent_at) / took,
        len(accepted) / max(seconds, took),
        *_quantiles(accepted),
        len(refused) / max(seconds, took),
        *_quantiles(refused),
        len(sent_at) - len(accepted) - len(refused),
    )


def _quantiles(latencies: list[float]) -> tuple[float, float]:
    if len(latencies) < 2:
        return (0.0, 0.0)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return cuts[49], cuts[98]


def closed_loop(address: str, request: bytes, clients: int, seconds: float) -> load.Measurement:
    """So many clients that wait for their answers; refused ones ask again at once, too."""
    return load.run(address, request, clients, seconds, warm_up_s=0.5, succeeded=payloads.succeeded)


def _accepted_per_s(measured: load.Measurement) -> float:
    return measured.calls_per_s * (1 - measured.refused / measured.sent)


class LoopTime:
    """The processor time of the ingress's busiest thread, which is its loop."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._used()
        self._began = time.perf_counter()

    def share(self) -> float:
        """Of one core, since this was made."""
        used = self._used()
        busiest = max(seconds - self._before.get(thread, 0.0) for thread, seconds in used.items())
        return busiest / (time.perf_counter() - self._began)

    def _used(self) -> dict[int, float]:
        return {thread.id: thread.user_time + thread.system_time for thread in self._process.threads()}


class Measured(NamedTuple):
    open: Outcome
    peak_per_s: float
    slowest_list: float
    """ms"""
    peak_loop: float
    open_loop: float
    """Shares of a core."""


@contextmanager
def listing(ip: str) -> Iterator[list[float]]:
    """Lists functions all the while; how long each took, in ms."""
    took: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 20_000)
        socket.connect(tcp(ip, LIST))
        while not stop.wait(0.05):
            began = time.perf_counter()
            socket.send(b"")
            socket.recv()
            took.append((time.perf_counter() - began) * 1e3)
        socket.close()
        context.term()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join(30.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--load", choices=LOADS, default="references")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    request, address = LOADS[options.load], tcp(SCHEDULER_IP, DAG_CALL)
    with ExitStack() as running:
        scheduler = running.enter_context(Scheduler(SCHEDULER_IP))
        running.enter_context(Helper("executors", EXECUTORS_IP, SCHEDULER_IP, str(payloads.EXECUTORS)))
        running.enter_context(Helper("refuser", REFUSER_IP))
        scheduler.fill()
        ingress = scheduler.status()["actors"]["ingress"]["pid"]
        elsewhere = tcp(REFUSER_IP, DAG_CALL)
        ways = {f"{times} x": (times, [address]) for times in TIMES}
        ways["control"] = (TIMES[-1], [address, *[elsewhere] * (TIMES[-1] - 1)])
        rounds: dict[str, list[Measured]] = {name: [] for name in ways}
        waiting: dict[int, list[load.Measurement]] = {times: [] for times in TIMES}
        for _ in range(options.rounds):
            load.run(address, request, CLIENTS, 0.5, warm_up_s=0.0)
            loop = LoopTime(ingress)
            closed = load.run(address, request, CLIENTS, 2.0, warm_up_s=0.0)
            peak_loop = loop.share()
            for name, (times, addresses) in ways.items():
                with listing(SCHEDULER_IP) as lists:
                    loop = LoopTime(ingress)
                    outcome = open_loop(addresses, request, times * closed.calls_per_s, options.seconds)
                    open_share = loop.share()
                rounds[name].append(Measured(outcome, closed.calls_per_s, max(lists), peak_loop, open_share))
                time.sleep(1.0)
            for times in TIMES:
                waiting[times].append(closed_loop(address, request, times * CLIENTS, options.seconds))
    print(
        "load     peak/s  loop  offered/s  accepted/s  share  loop  p50 ms  p99 ms"
        "  refused/s  p50 ms  p99 ms  unanswered  list max ms"
    )
    for name, measured in rounds.items():
        measured.sort(key=lambda each: each.open.accepted_per_s / each.peak_per_s)
        outcome, peak, slowest, peak_loop, open_share = measured[len(measured) // 2]
        print(
            f"{name:8} {peak:6.0f} {peak_loop:5.2f} {outcome.offered_per_s:10.0f} "
            f"{outcome.accepted_per_s:11.0f} {outcome.accepted_per_s / peak:6.2f} {open_share:5.2f} "
            f"{outcome.accepted_p50:7.1f} {outcome.accepted_p99:7.1f} "
            f"{outcome.refused_per_s:10.0f} {outcome.refused_p50:7.1f} {outcome.refused_p99:7.1f} "
            f"{outcome.unanswered:11d} {slowest:12.0f}"
        )
    print("clients that wait  accepted/s  share  p50 ms  p99 ms  refused/s")
    peak = statistics.median(_accepted_per_s(measured) for measured in waiting[1])
    for times, measurements in waiting.items():
        middle = sorted(measurements, key=_accepted_per_s)[len(measurements) // 2]
        accepted = _accepted_per_s(middle)
        print(
            f"{times * CLIENTS:17d} {accepted:11.0f} {accepted / peak:6.2f} "
            f"{middle.p50_ms:7.1f} {middle.p99_ms:7.1f} {middle.calls_per_s - accepted:10.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
