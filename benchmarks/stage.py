"""What is measured: a small group, a large one, the floor, and executors for them, started and filled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from benchmarks import payloads
from benchmarks.crowd import crowd_function, ips
from benchmarks.helper import Helper
from benchmarks.scheduler import NoReplyError, Scheduler, ask
from ray_sched.kvs.client import KvsClient
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import shared_pb2
from ray_sched.wire.ports import DAG_CREATE, DAG_DELETE, FUNCTION_CREATE

SMALL_IP: Final = "127.0.6.4"
FLOOR_IP: Final = "127.0.6.5"
SMALL_EXECUTORS_IP: Final = "127.0.6.6"
LARGE_IP: Final = "127.0.6.7"
LARGE_EXECUTORS_IP: Final = "127.0.6.8"
CROWD_IP: Final = "127.0.6.20"
KEYS_CLIENT_IP: Final = "127.0.6.9"

CROWD: Final = 2997
DAGS: Final = 300
KEYS: Final = 10_000
CROWD_FUNCTIONS: Final = 100
KNOWN_S: Final = 60.0
"""How long the large group may take to know all of it."""


def start_small(running: ExitStack) -> Scheduler:
    """The small group, three executors for it, and the floor, which sends to the same ones."""
    small = running.enter_context(Scheduler(SMALL_IP))
    running.enter_context(Helper("executors", SMALL_EXECUTORS_IP, SMALL_IP, str(payloads.EXECUTORS)))
    running.enter_context(Helper("floor", FLOOR_IP, SMALL_EXECUTORS_IP))
    small.fill()
    return small


def start_large(running: ExitStack) -> Scheduler:
    """The large group: its DAGs are pinned on three executors, then the crowd joins, and its keys."""
    large = running.enter_context(Scheduler(LARGE_IP))
    running.enter_context(Helper("executors", LARGE_EXECUTORS_IP, LARGE_IP, str(payloads.EXECUTORS)))
    large.fill()
    for number in range(CROWD_FUNCTIONS):
        function = cb.Function(name=crowd_function(number), body=b"never run")
        large.must_succeed(FUNCTION_CREATE, function.SerializeToString())
    for number in range(DAGS - len(payloads.CHAINS)):
        names = [crowd_function((number + step) % CROWD_FUNCTIONS) for step in range(3)]
        dag = payloads.chain_of(f"crowd_dag_{number}", names)
        large.must_succeed(DAG_CREATE, dag.SerializeToString())
    running.enter_context(Helper("crowd", CROWD_IP, LARGE_IP, str(CROWD), str(CROWD_FUNCTIONS)))
    with KvsClient(LARGE_IP, KEYS_CLIENT_IP, timeout_s=5.0, retries=3, routing_ports=1) as kvs:
        at = [LARGE_EXECUTORS_IP, *ips(CROWD_IP, CROWD)]
        for number, ip in enumerate(at):
            keys = shared_pb2.StringSet(keys=map(payloads.key, range(number, KEYS, len(at))))
            kvs.put_bytes(f"ANNA_METADATA|cache_ip|{ip}", keys.SerializeToString())
    deadline = time.monotonic() + KNOWN_S
    while (known := large.known()) != (CROWD + payloads.EXECUTORS, DAGS, KEYS):
        if time.monotonic() > deadline:
            raise NoReplyError(f"the large group knows (executors, DAGs, cached keys) {known}; {large.log()}")
        time.sleep(1.0)
    return large


class Creating:
    """A DAG of ten functions is created while something is measured, and its executors take their time."""

    def __init__(self, ip: str, delay: Callable[[int], object]) -> None:
        self._ip = ip
        self._delay = delay
        self._thread: threading.Thread | None = None
        self._made = 0

    def begin(self, delay_ms: int) -> None:
        self._delay(delay_ms)
        self._made += 1
        dag = payloads.chain_of(f"slow_{self._made}", [payloads.function_name(n) for n in range(10)])
        self._thread = threading.Thread(target=self._create, args=(dag,), daemon=True)
        self._thread.start()

    def _create(self, dag: cb.Dag) -> None:
        ask(self._ip, DAG_CREATE, dag.SerializeToString())
        ask(self._ip, DAG_DELETE, dag.name.encode())

    def end(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._delay(0)
