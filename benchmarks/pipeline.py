"""Whole calls, from a client's request to its result, on our own executors.

The chain's functions tell when they ran, so that a call falls into stages; each is compared with the same
stage of the floor (`floor_chain`), and the call as a whole with Ray tasks, Ray actors and Dask (`rivals`).
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import cloudpickle
import psutil
import zmq

from benchmarks import payloads, stamps
from benchmarks.bench import Check, Numbers, Result, Settings
from benchmarks.helper import Helper
from benchmarks.scheduler import Scheduler
from ray_sched.values import dumps, from_value, to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.ports import DAG_CALL, DAG_CREATE, FUNCTION_CREATE, tcp

OURS_IP: Final = "127.0.6.10"
FLOOR_IP: Final = "127.0.6.11"
CLIENT: Final = "tcp://127.0.6.12:9000"
LENGTH: Final = 3
CLIENTS: Final = 8
RIVALS: Final = ("ray-tasks", "ray-actors", "dask")
RIVAL_S: Final = 4.0
RIVAL_TIMEOUT_S: Final = 120.0
WAIT_MS: Final = 10_000
STAGE_TIMES: Final = 2.0
STAGES: Final = ("to the first function", "to the second", "to the third", "to the client")
REPLY: Final = "the ingress's reply"


@dataclass
class Calls:
    """What the calls of one client came to."""

    latencies: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    calls_per_s: float = 0.0

    def medians_ms(self) -> dict[str, float]:
        return {stage: statistics.median(times) * 1e3 for stage, times in self.stages.items()}


class Client:
    """Asks for calls of the chain whose results come straight to it."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._results = self._context.socket(zmq.PULL)
        self._results.bind(CLIENT)
        self._results.rcvtimeo = WAIT_MS
        self._requests: dict[str, zmq.SyncSocket] = {}

    def close(self) -> None:
        self._context.destroy(0)

    def begin(self, ip: str) -> zmq.SyncSocket:
        socket = self._requests.get(ip)
        if socket is None:
            socket = self._requests[ip] = self._context.socket(zmq.DEALER)
            socket.rcvtimeo = WAIT_MS
            socket.connect(tcp(ip, DAG_CALL))
        call = cb.DagCall(name=payloads.dag_name(LENGTH), response_address=CLIENT)
        call.function_args[payloads.function_name(0)].values.append(to_value([time.monotonic()]))
        socket.send_multipart([b"", call.SerializeToString()])
        return socket

    def result(self) -> list[float]:
        """When it was asked for, when its functions ran, and now. Raises zmq.Again."""
        told = from_value(cb.Value.FromString(self._results.recv()))
        if not (isinstance(told, list) and len(told) == LENGTH + 1):
            raise RuntimeError(f"a call of the chain gave {told!r}")
        return [*told, time.monotonic()]

    def one_by_one(self, ip: str, seconds: float) -> Calls:
        calls = Calls(stages={stage: [] for stage in (REPLY, *STAGES)})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            socket = self.begin(ip)
            assert payloads.succeeded(socket.recv_multipart()[1])
            replied = time.monotonic()
            at = self.result()
            calls.latencies.append(at[-1] - at[0])
            calls.stages[REPLY].append(replied - at[0])
            for stage, (before, after) in zip(STAGES, itertools.pairwise(at), strict=True):
                calls.stages[stage].append(after - before)
        return calls

    def at_once(self, ip: str, seconds: float) -> Calls:
        """Closed loop of `CLIENTS` calls under way."""
        calls = Calls()
        began = time.monotonic()
        for _ in range(CLIENTS):
            socket = self.begin(ip)
        while (now := time.monotonic()) < began + seconds:
            at = self.result()
            calls.latencies.append(at[-1] - at[0])
            socket.recv_multipart()
            self.begin(ip)
        calls.calls_per_s = len(calls.latencies) / (now - began)
        for _ in range(CLIENTS):
            self.result()
            socket.recv_multipart()
        return calls


def measure(settings: Settings, only: str) -> Iterator[Result]:
    """The rows of whole calls, and what a group takes of the machine."""
    rows = ("end to end", "rivals", "a group by itself")
    if not any(only in row for row in rows):
        return
    with ExitStack() as running:
        ours = running.enter_context(Scheduler(OURS_IP, executors=LENGTH))
        yield _footprint(ours)
        running.enter_context(Helper("floor_chain", FLOOR_IP))
        ours.await_executors(LENGTH)  # else all functions go to the first one that reports
        _fill(ours)
        client = Client()
        running.callback(client.close)
        for ip in (OURS_IP, FLOOR_IP):
            client.one_by_one(ip, settings.warm_up_s + 0.5)
        result, single, many = _stages(client, settings)
        yield result
    yield _against_rivals(single, many)


def _fill(group: Scheduler) -> None:
    cloudpickle.register_pickle_by_value(stamps)  # the executors have no benchmarks
    for number in range(LENGTH):
        function = cb.Function(name=payloads.function_name(number), body=dumps(stamps.stamp))
        group.must_succeed(FUNCTION_CREATE, function.SerializeToString())
    group.must_succeed(DAG_CREATE, payloads.chain(LENGTH).SerializeToString())


def _stages(client: Client, settings: Settings) -> tuple[Result, float, float]:
    runs: dict[str, list[Calls]] = {"floor": [], "ours": []}
    many: dict[str, list[Calls]] = {"floor": [], "ours": []}
    for _ in range(settings.rounds):
        for name, ip in (("floor", FLOOR_IP), ("ours", OURS_IP)):
            runs[name].append(client.one_by_one(ip, settings.duration_s))
            many[name].append(client.at_once(ip, settings.duration_s))
    numbers = {
        name: Numbers(
            statistics.median(calls.calls_per_s for calls in many[name]),
            statistics.median(statistics.median(calls.latencies) for calls in runs[name]) * 1e3,
            statistics.median(statistics.quantiles(calls.latencies, n=100)[98] for calls in runs[name]) * 1e3,
        )
        for name in runs
    }
    notes, checks = [], []
    for stage in (REPLY, *STAGES):
        pairs = [
            (ours.medians_ms()[stage], floor.medians_ms()[stage])
            for ours, floor in zip(runs["ours"], runs["floor"], strict=True)
        ]
        times = statistics.median(mine / theirs for mine, theirs in pairs)
        mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
        notes.append(f"{stage}: {mine:.3f} ms, floor {theirs:.3f} ms, times {times:.2f}")
        checks.append(Check(f"{stage}, times", times, STAGE_TIMES, at_least=False))
    ours, floor = numbers["ours"], numbers["floor"]
    result = Result(
        "end to end, chain of 3 (p50, p99: 1 client)",
        CLIENTS,
        numbers,
        share=ours.calls_per_s / floor.calls_per_s,
        p50_times=ours.p50_ms / floor.p50_ms,
        p99_times=ours.p99_ms / floor.p99_ms,
        checks=tuple(checks),
        notes=tuple(notes),
    )
    return result, ours.p50_ms, ours.calls_per_s


def _against_rivals(p50_ms: float, calls_per_s: float) -> Result:
    checks, notes, problems = [], [f"ours: p50 {p50_ms:.3f} ms, {calls_per_s:.0f} calls/s"], []
    for name in RIVALS:
        command = [sys.executable, "-m", "benchmarks.rivals", name, str(RIVAL_S)]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=RIVAL_TIMEOUT_S,
            start_new_session=True,
        )
        if done.returncode:
            problems.append(f"{name}: {done.stderr.strip()[-300:]}")
            continue
        told = json.loads(done.stdout.splitlines()[-1])
        notes.append(f"{name}: p50 {told['p50_ms']:.3f} ms, {told['calls_per_s']:.0f} calls/s")
        checks.append(Check(f"p50 by that of {name}", p50_ms / told["p50_ms"], 1.0, at_least=False))
        checks.append(Check(f"calls/s by {name}'s", calls_per_s / told["calls_per_s"], 1.0, at_least=True))
    return Result(
        "rivals, chain of 3", CLIENTS, checks=tuple(checks), notes=tuple(notes), problems=tuple(problems)
    )


def _footprint(group: Scheduler) -> Result:
    """The memory of its actors, without what they share, and how long it took to start."""
    notes = [f"from `ray-sched up` to the first answer: {group.start_s:.1f} s"]
    told = group.status()
    found = {role: answer["pid"] for role, answer in told["actors"].items() if "pid" in answer}
    for role, pid in found.items():
        memory = psutil.Process(pid).memory_full_info()
        notes.append(f"{role}: {memory.uss / 2**20:.0f} MB of its own, {memory.rss / 2**20:.0f} MB resident")
    return Result("a group by itself", 0, notes=tuple(notes))
