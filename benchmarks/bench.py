"""Measuring one load against several servers in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from benchmarks import load
from benchmarks.executors import CONTROL
from benchmarks.load import Measurement
from ray_sched.wire.ports import tcp

ARRIVAL_S: Final = 5.0
"""How long the last messages of a load may be on their way to the executors."""


@dataclass(frozen=True)
class Settings:
    rounds: int
    duration_s: float
    warm_up_s: float


@dataclass(frozen=True)
class Result:
    """A row: medians over the rounds for each server, and medians of each round's ratio to the floor."""

    row: str
    clients: int
    calls_per_s: dict[str, float]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]
    throughput_share: float
    """Ours by the floor's, of calls a second."""
    p50_ratio: float
    """Ours by the floor's."""
    problems: tuple[str, ...]
    """What makes the row worth nothing, such as refused calls."""


class Bench:
    """What a row needs to measure: the servers' addresses, and for how long."""

    def __init__(self, servers: Mapping[str, str], executors_ip: str, settings: Settings) -> None:
        self.servers = servers
        """IP address by name: `ours`, `floor`."""
        self._settings = settings
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._control = self._context.socket(zmq.REQ)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.setsockopt(zmq.RCVTIMEO, int(ARRIVAL_S * 1000))
        self._control.connect(tcp(executors_ip, CONTROL))

    def close(self) -> None:
        self._control.close()
        self._context.term()

    def compare(
        self,
        row: str,
        clients: int,
        port: int,
        request: bytes,
        *,
        messages_per_call: int,
        succeeded: Callable[[bytes], bool],
    ) -> Result:
        """Run one load against every server, round by round."""
        rounds: dict[str, list[Measurement]] = {name: [] for name in self.servers}
        problems: list[str] = []
        for number in range(self._settings.rounds):
            for name in _turned(list(self.servers), number):
                before = self._arrived()
                measured = load.run(
                    tcp(self.servers[name], port),
                    request,
                    clients,
                    self._settings.duration_s,
                    warm_up_s=self._settings.warm_up_s,
                    succeeded=succeeded,
                )
                rounds[name].append(measured)
                if measured.refused:
                    problems.append(f"{name} refused {measured.refused} of {measured.sent} calls")
                missing = (
                    before
                    + measured.sent * messages_per_call
                    - self._await_arrival(before + measured.sent * messages_per_call)
                )
                if missing and not measured.refused:
                    problems.append(f"{missing} messages of {name} too few arrived at the executors")
        pairs = list(zip(rounds["ours"], rounds["floor"], strict=True))
        return Result(
            row,
            clients,
            calls_per_s={
                name: statistics.median(m.calls_per_s for m in runs) for name, runs in rounds.items()
            },
            p50_ms={name: statistics.median(m.p50_ms for m in runs) for name, runs in rounds.items()},
            p99_ms={name: statistics.median(m.p99_ms for m in runs) for name, runs in rounds.items()},
            throughput_share=statistics.median(ours.calls_per_s / floor.calls_per_s for ours, floor in pairs),
            p50_ratio=statistics.median(ours.p50_ms / floor.p50_ms for ours, floor in pairs),
            problems=tuple(problems),
        )

    def _arrived(self) -> int:
        self._control.send(b"")
        return int(self._control.recv())

    def _await_arrival(self, expected: int) -> int:
        """Until the executors got so many messages in all, or no more come; how many they got."""
        deadline = time.monotonic() + ARRIVAL_S
        while (arrived := self._arrived()) < expected and time.monotonic() < deadline:
            time.sleep(0.005)
        return arrived


def _turned(names: Sequence[str], number: int) -> list[str]:
    """Each round begins with another server."""
    start = number % len(names)
    return [*names[start:], *names[:start]]
