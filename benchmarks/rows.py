"""The rows of the table: what is measured, against what, and what it is to reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import load, payloads
from benchmarks.bench import Bench, Check, Result, Target
from benchmarks.stage import (
    CROWD_IP,
    FLOOR_IP,
    LARGE_EXECUTORS_IP,
    LARGE_IP,
    SMALL_EXECUTORS_IP,
    SMALL_IP,
    Creating,
)
from ray_sched.wire.ports import CONNECT, DAG_CALL, FUNCTION_CALL, tcp

STATUSES_A_SECOND: Final = 5000
PIN_DELAY_MS: Final = 200

SMALL: Final = (SMALL_EXECUTORS_IP,)
LARGE: Final = (LARGE_EXECUTORS_IP, CROWD_IP)

# To reach, as ratios to the floor of the same run, or to the load that a row compares with.
DAG_SHARE: Final = 0.65
DAG_TIMES: Final = 1.7
CALL_SHARE: Final = 0.80
CALL_TIMES: Final = 1.25
SCALE_TIMES: Final = 1.10
REFERENCES_TIMES: Final = 1.5
P99_TIMES: Final = 1.5
CREATE_TIMES: Final = 1.25
SPREAD_S: Final = 5.0
SATURATING: Final = 32
"""Clients with whom both cores are full: rounds differ by more then than their usual number levels out."""


@dataclass(frozen=True)
class Row:
    name: str
    clients: int
    quick: bool
    """Whether it is one of the core rows."""
    measure: Callable[[Bench, str, int], Result]
    large: bool = False
    """Whether it needs the large group."""


def echo(ip: str, executors: tuple[str, ...]) -> Target:
    return Target(ip, CONNECT, b"", 0, executors, lambda reply: True)


def one_shot(ip: str, executors: tuple[str, ...]) -> Target:
    return Target(ip, FUNCTION_CALL, payloads.one_shot_call(), 1, executors, payloads.succeeded)


def chain(length: int, ip: str, executors: tuple[str, ...], references: int = 0) -> Target:
    request = payloads.dag_call(length, references)
    return Target(ip, DAG_CALL, request, length + 1, executors, payloads.succeeded)


Load = Callable[[str, tuple[str, ...]], Target]
CHAIN_3: Final = partial(chain, 3)
CHAIN_10: Final = partial(chain, 10)


def against_floor(
    target: Load, least_share: float, most_times: float, bench: Bench, row: str, clients: int
) -> Result:
    """Ours against the floor: calls a second with many clients, latency with one."""
    targets = {"floor": target(FLOOR_IP, SMALL), "ours": target(SMALL_IP, SMALL)}
    rounds = bench.rounds(clients, targets, 3 if target is CHAIN_10 and clients == SATURATING else 1)
    if not least_share:
        return rounds.result(row, clients, "ours", "floor")
    if clients == 1:
        check = Check("p50 times", rounds.ratio("p50_ms", "ours", "floor"), most_times, at_least=False)
    else:
        check = Check("share", rounds.ratio("calls_per_s", "ours", "floor"), least_share, at_least=True)
    return rounds.result(row, clients, "ours", "floor", check)


def at_scale(target: Load, bench: Bench, row: str, clients: int) -> Result:
    """A group that knows 3,000 executors, 300 DAGs and 10,000 cached keys, against one with 3, 3 and 0."""
    targets = {"small": target(SMALL_IP, SMALL), "large": target(LARGE_IP, LARGE)}
    rounds = bench.rounds(clients, targets, 3 if clients == SATURATING else 1)
    if clients == 1:
        cost = rounds.ratio("p50_ms", "large", "small")
    else:
        cost = 1 / rounds.ratio("calls_per_s", "large", "small")
    check = Check("cost times", cost, SCALE_TIMES, at_least=False)
    return rounds.result(row, clients, "large", "small", check)


def spread(bench: Bench, row: str, clients: int) -> Result:
    """One-shot calls when all of 3,000 executors are free: each goes over another connection."""
    small, large = one_shot(SMALL_IP, SMALL), one_shot(LARGE_IP, LARGE)
    bench.control(CROWD_IP, "cpu")
    deadline = time.monotonic() + SPREAD_S
    while time.monotonic() < deadline:  # until nearly all connections are there
        load.run(tcp(LARGE_IP, FUNCTION_CALL), large.request, 32, 1.0, warm_up_s=0.1)
    return bench.rounds(clients, {"small": small, "large": large}).result(row, clients, "large", "small")


def with_references(bench: Bench, row: str, clients: int) -> Result:
    """Four references among 10,000 cached keys, against a call without, in the large group."""
    rounds = bench.rounds(
        clients, {"without": chain(3, LARGE_IP, LARGE), "with": chain(3, LARGE_IP, LARGE, references=4)}
    )
    cost = 1 / rounds.ratio("calls_per_s", "with", "without")
    check = Check("cost times", cost, REFERENCES_TIMES, at_least=False)
    return rounds.result(row, clients, "with", "without", check)


def with_statuses(bench: Bench, row: str, clients: int) -> Result:
    """Calls while thousands of statuses a second come in, against calls by themselves; the floor likewise."""

    def told(target: Target) -> Target:
        return Target(
            target.ip, target.port, target.request, target.messages_per_call, target.executors,
            target.succeeded,
            begin=lambda: bench.control(CROWD_IP, f"{target.ip} {STATUSES_A_SECOND}"),
            end=lambda: bench.control(CROWD_IP, "usual"),
        )  # fmt: skip

    floor, ours = chain(3, FLOOR_IP, SMALL), chain(3, LARGE_IP, LARGE)
    rounds = bench.rounds(
        clients, {"floor": floor, "floor told": told(floor), "without": ours, "with": told(ours)}, times=3
    )
    kept = rounds.ratio("calls_per_s", "with", "without")
    # More than all is noise: statuses cost the floor something.
    kept_by_floor = min(1.0, rounds.ratio("calls_per_s", "floor told", "floor"))
    return rounds.result(
        row,
        clients,
        "with",
        "without",
        Check("kept, by what the floor keeps:", kept / kept_by_floor, 0.95, at_least=True),
        Check("p99 times", rounds.ratio("p99_ms", "with", "without"), P99_TIMES, at_least=False),
    )


def with_create(bench: Bench, row: str, clients: int) -> Result:
    """Calls while a DAG of ten functions is created whose executors answer each pin after 200 ms."""
    ours = chain(3, SMALL_IP, SMALL)
    create = Creating(SMALL_IP, lambda delay_ms: bench.control(SMALL_EXECUTORS_IP, f"{delay_ms}"))
    during = Target(
        ours.ip, ours.port, ours.request, ours.messages_per_call, ours.executors, ours.succeeded,
        begin=lambda: create.begin(PIN_DELAY_MS), end=create.end,
    )  # fmt: skip
    # Twice by itself: what differs between these two is the noise.
    rounds = bench.rounds(clients, {"without": ours, "again without": ours, "with": during}, times=2)
    noise = rounds.ratio("p99_ms", "again without", "without")
    check = Check(
        "p99 times", rounds.ratio("p99_ms", "with", "without"), max(1.25, 1.25 * noise), at_least=False
    )
    return rounds.result(row, clients, "with", "without", check)


ROWS: Final = (
    Row("echo", 1, True, partial(against_floor, echo, 0, 0)),
    *(
        Row("one-shot", clients, clients != 32, partial(against_floor, one_shot, CALL_SHARE, CALL_TIMES))
        for clients in (1, 8, 32)
    ),
    *(
        Row(name, clients, True, partial(against_floor, target, DAG_SHARE, DAG_TIMES))
        for name, target in (("chain of 3", CHAIN_3), ("chain of 10", CHAIN_10))
        for clients in (1, 8, 32)
    ),
    Row("chain of 3, while a DAG is created", 8, False, with_create),
    *(
        Row(f"{name}, at scale", clients, False, partial(at_scale, target), large=True)
        for name, target, counts in (
            ("one-shot", one_shot, (1, 8)),
            ("chain of 3", CHAIN_3, (1, 8, 32)),
            ("chain of 10", CHAIN_10, (1, 8, 32)),
        )
        for clients in counts
    ),
    Row("chain of 3, 4 references", 8, False, with_references, large=True),
    Row("chain of 3, 5,000 statuses/s", 8, False, with_statuses, large=True),
    Row("one-shot, spread over 3,000", 8, False, spread, large=True),
)
