"""A crowd of played executors, which hold functions of other DAGs.

    python -m benchmarks.crowd IP SCHEDULER_IP COUNT FUNCTIONS

They live on IP and the addresses after it, `PER_IP` on each, and tell their status every 5 s each, as
executors do by default. Whoever asks at CONTROL on IP is told how many calls arrived so far; who asks with
`IP RATE` has that many statuses a second sent there instead, until asked for `usual`. They are GPU
executors, which get no one-shot calls; whoever asks with `cpu` makes them the others, all of them free.
"""

from __future__ import annotations

import ipaddress
import itertools
import sys
import time
from typing import Final

import zmq

from benchmarks.executors import CONTROL, Drain
from benchmarks.helper import end_with_parent, say_ready
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import STATUS, WIDE, tcp

PER_IP: Final = WIDE.threads
PERIOD_S: Final = 5.0
STEP_S: Final = 0.01


def ips(first: str, count: int) -> list[str]:
    """The addresses of a crowd."""
    start = ipaddress.ip_address(first)
    return [str(start + number) for number in range(-(-count // PER_IP))]


def crowd_function(number: int) -> str:
    return f"crowd_{number}"


def statuses(first: str, count: int, functions: int, kind: internal_pb2.ExecutorType) -> list[bytes]:
    made = []
    for number, (ip, tid) in enumerate(itertools.product(ips(first, count), range(PER_IP))):
        held = [crowd_function((number + step) % functions) for step in range(3)] if functions else []
        status = internal_pb2.ThreadStatus(
            ip=ip, tid=tid, functions=held, utilization=0.1, running=True, type=kind
        )
        made.append(status.SerializeToString())
    return made[:count]


def main() -> None:
    end_with_parent()
    first, scheduler_ip, count, functions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 16_384)
    members = list(itertools.product(ips(first, count), range(PER_IP)))[:count]
    drain = Drain(context, [tcp(ip, WIDE.call + tid) for ip, tid in members])
    control = context.socket(zmq.REP)
    control.bind(tcp(first, CONTROL))
    usual = (scheduler_ip, count / PERIOD_S)
    ip, rate = usual
    out = context.socket(zmq.PUSH)
    out.connect(tcp(ip, STATUS))
    told = itertools.cycle(statuses(first, count, functions, internal_pb2.GPU))
    for status in itertools.islice(told, count):
        out.send(status)
    say_ready()
    due, at = 0.0, time.monotonic()
    while True:
        if control.poll(int(STEP_S * 1000)):
            asked = control.recv().decode().split()
            if asked == ["cpu"]:
                told = itertools.cycle(statuses(first, count, functions, internal_pb2.CPU))
            elif asked:
                ip, rate = (asked[0], float(asked[1])) if len(asked) == 2 else usual
                out.close(0)
                out = context.socket(zmq.PUSH)
                out.connect(tcp(ip, STATUS))
            control.send(str(drain.arrived).encode())
            if asked == ["cpu"]:
                due += count
        now = time.monotonic()
        due += rate * (now - at)
        at = now
        while due >= 1.0:
            out.send(next(told))
            due -= 1.0


if __name__ == "__main__":
    main()
