"""Measuring loads in turns, so that what disturbs one disturbs all, and judging them against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from benchmarks import load
from benchmarks.executors import CONTROL
from benchmarks.load import Measurement
from benchmarks.scheduler import ingress_counts
from ray_sched.wire.ports import tcp

ARRIVAL_S: Final = 5.0
"""How long the last messages of a load may be on their way to the executors."""


@dataclass(frozen=True)
class Settings:
    rounds: int
    duration_s: float
    warm_up_s: float


@dataclass(frozen=True)
class Target:
    """One load: whom to ask for what."""

    ip: str
    port: int
    request: bytes
    messages_per_call: int
    """What executors get of one call."""
    executors: tuple[str, ...]
    """Where the executors' programs say how much they got: the IP addresses of their CONTROL ports."""
    succeeded: Callable[[bytes], bool]
    begin: Callable[[], object] = lambda: None
    end: Callable[[], object] = lambda: None
    """What happens around each of its measurements."""


@dataclass(frozen=True)
class Check:
    """What a row is to show: that a number is on the right side of a limit."""

    what: str
    value: float
    limit: float
    at_least: bool

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        relation = ">=" if self.at_least else "<="
        return f"{self.what} {self.value:.2f} {relation} {self.limit:g}: {'pass' if self.passed else 'FAIL'}"


@dataclass(frozen=True)
class Numbers:
    """Medians over the rounds."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Result:
    """A row of the table. `ours` is compared with `base`, both among `numbers`."""

    row: str
    clients: int
    numbers: dict[str, Numbers] = field(default_factory=dict)
    ours: str = "ours"
    base: str = "floor"
    share: float = 0.0
    """Ours by the base's, of calls a second: the median of the rounds' ratios."""
    p50_times: float = 0.0
    p99_times: float = 0.0
    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()
    """What makes the row worth nothing, such as refused calls."""
    notes: tuple[str, ...] = ()
    """What it shows beside these numbers."""


@dataclass(frozen=True)
class Rounds:
    """What each load came to, round by round."""

    measured: dict[str, list[Measurement]]
    problems: tuple[str, ...]

    def numbers(self) -> dict[str, Numbers]:
        return {
            name: Numbers(
                *(
                    statistics.median(getattr(m, what) for m in runs)
                    for what in ("calls_per_s", "p50_ms", "p99_ms")
                )
            )
            for name, runs in self.measured.items()
        }

    def ratio(self, what: str, one: str, other: str) -> float:
        """The median of each round's ratio of a number of `one` to that of `other`."""
        pairs = zip(self.measured[one], self.measured[other], strict=True)
        return float(statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs))

    def result(self, row: str, clients: int, ours: str, base: str, *checks: Check) -> Result:
        return Result(
            row,
            clients,
            self.numbers(),
            ours,
            base,
            self.ratio("calls_per_s", ours, base),
            self.ratio("p50_ms", ours, base),
            self.ratio("p99_ms", ours, base),
            checks,
            self.problems,
        )


class Bench:
    """Runs loads. Closes what it opened when it is left."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._controls: dict[str, zmq.SyncSocket] = {}

    def close(self) -> None:
        for control in self._controls.values():
            control.close()
        self._context.term()

    def rounds(self, clients: int, targets: Mapping[str, Target], times: int = 1) -> Rounds:
        """Run every load, round by round, each round beginning with another.

        `times` as many rounds as usual, where what is to be told apart is less than the noise of one load.
        """
        measured: dict[str, list[Measurement]] = {name: [] for name in targets}
        problems: list[str] = []
        for number in range(times * self.settings.rounds):
            for name in _turned(list(targets), number):
                target = targets[name]
                target.begin()
                try:
                    one, wrong = self._measure(clients, name, target)
                finally:
                    target.end()
                measured[name].append(one)
                problems += wrong
        return Rounds(measured, tuple(problems))

    def _measure(self, clients: int, name: str, target: Target) -> tuple[Measurement, list[str]]:
        before = self._arrived(target.executors)
        measured = load.run(
            tcp(target.ip, target.port),
            target.request,
            clients,
            self.settings.duration_s,
            warm_up_s=self.settings.warm_up_s,
            succeeded=target.succeeded,
        )
        if measured.refused:
            refused = f"{name} refused {measured.refused} of {measured.sent} calls"
            return measured, [f"{refused}; its ingress counted since its start: {ingress_counts(target.ip)}"]
        expected = before + measured.sent * target.messages_per_call
        missing = expected - self._await_arrival(target.executors, expected)
        return measured, [f"{missing} messages of {name} too few arrived at the executors"] if missing else []

    def control(self, ip: str, request: str = "") -> int:
        """Tell a program of executors something; how much arrived there so far."""
        socket = self._controls.get(ip)
        if socket is None:
            socket = self._controls[ip] = self._context.socket(zmq.REQ)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, int(ARRIVAL_S * 1000))
            socket.connect(tcp(ip, CONTROL))
        socket.send(request.encode())
        return int(socket.recv())

    def _arrived(self, executors: Sequence[str]) -> int:
        return sum(self.control(ip) for ip in executors)

    def _await_arrival(self, executors: Sequence[str], expected: int) -> int:
        """Until the executors got so many messages in all, or no more come; how many they got."""
        deadline = time.monotonic() + ARRIVAL_S
        while (arrived := self._arrived(executors)) < expected and time.monotonic() < deadline:
            time.sleep(0.005)
        return arrived


def _turned(names: Sequence[str], number: int) -> list[str]:
    start = number % len(names)
    return [*names[start:], *names[:start]]
