"""What a simulation counts, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_sched.core.executor import Address


@dataclass(frozen=True)
class Second:
    """One second of the whole cluster."""

    arrivals: int
    refused: int
    utilization: float
    hit_rate: float
    """NaN where nothing was read."""
    left_out: float
    """Share of the executors that the first group takes for overloaded."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to. Shares are 0 to 1; NaN where there is nothing to divide by.

    But for `all_*`, and `seconds`, the warm-up is left out: calls count where they arrived after it.
    """

    all_arrivals: int
    all_completed: int
    all_refused: int
    all_in_flight: int
    """Calls that had not ended when the simulation did."""
    arrivals: int
    completed: int
    refused: int
    latencies_s: tuple[float, ...]
    """Of the completed calls, from the client's request to its result, shortest first."""
    utilization: float
    """The executors' busy share of the time in which calls arrive."""
    utilization_least: float
    utilization_most: float
    """Of the least and the most busy executor."""
    hits: int
    misses: int
    left_out: float
    """Mean share of the executors that the first group takes for overloaded."""
    scheduler_utilization: float
    """The busiest group's share."""
    seconds: tuple[Second, ...]

    @property
    def hit_rate(self) -> float:
        return ratio(self.hits, self.hits + self.misses)

    @property
    def refused_share(self) -> float:
        return ratio(self.refused, self.arrivals)

    @property
    def mean_s(self) -> float:
        return ratio(math.fsum(self.latencies_s), len(self.latencies_s))

    def quantile_s(self, share: float) -> float:
        """The latency that this share of the completed calls does not exceed (nearest rank)."""
        if not self.latencies_s:
            return math.nan
        return self.latencies_s[max(0, math.ceil(share * len(self.latencies_s)) - 1)]


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


class Measures:
    """Counts while the simulation runs; `warm_up_s` to `duration_s` is what the figures are of."""

    def __init__(self, addresses: Sequence[Address], warm_up_s: float, duration_s: float) -> None:
        self._warm_up_s = warm_up_s
        self._duration_s = duration_s
        self.arrived = 0
        self.completed = 0
        self.refused = 0
        self._measured_arrivals = 0
        self._measured_refused = 0
        self._latencies_s: list[float] = []
        self._hits = self._misses = 0
        self._busy_s = dict.fromkeys(addresses, 0.0)
        length = math.ceil(duration_s)
        self._by_second: dict[str, list[float]] = {
            what: [0.0] * length for what in ("arrivals", "refused", "busy_s", "hits", "misses", "left_out")
        }

    def on_arrival(self, now: float) -> None:
        self.arrived += 1
        self._measured_arrivals += now >= self._warm_up_s
        self._count("arrivals", now, 1)

    def on_refusal(self, arrived_s: float) -> None:
        self.refused += 1
        self._measured_refused += arrived_s >= self._warm_up_s
        self._count("refused", arrived_s, 1)

    def on_result(self, arrived_s: float, now: float) -> None:
        self.completed += 1
        if arrived_s >= self._warm_up_s:
            self._latencies_s.append(now - arrived_s)

    def on_run(self, address: Address, began_s: float, now: float, hits: int, misses: int) -> None:
        """A run ended."""
        measured_s = min(now, self._duration_s) - max(began_s, self._warm_up_s)
        self._busy_s[address] += max(0.0, measured_s)
        if began_s >= self._warm_up_s:
            self._hits += hits
            self._misses += misses
        self._count("hits", began_s, hits)
        self._count("misses", began_s, misses)
        while began_s < min(now, self._duration_s):
            end_s = min(math.floor(began_s) + 1.0, now, self._duration_s)
            self._count("busy_s", began_s, end_s - began_s)
            began_s = end_s

    def on_second(self, now: float, left_out: float) -> None:
        """Which share of the executors is left out now."""
        self._count("left_out", now, left_out)

    def outcome(self, in_flight: int, scheduler_busy_s: Sequence[float]) -> Outcome:
        """What it came to; busy seconds of each group while calls arrived."""
        span_s = self._duration_s - self._warm_up_s
        shares = [busy_s / span_s for busy_s in self._busy_s.values()]
        left_out = self._by_second["left_out"][math.floor(self._warm_up_s) :]
        return Outcome(
            all_arrivals=self.arrived,
            all_completed=self.completed,
            all_refused=self.refused,
            all_in_flight=in_flight,
            arrivals=self._measured_arrivals,
            completed=len(self._latencies_s),
            refused=self._measured_refused,
            latencies_s=tuple(sorted(self._latencies_s)),
            utilization=math.fsum(shares) / len(shares),
            utilization_least=min(shares),
            utilization_most=max(shares),
            hits=self._hits,
            misses=self._misses,
            left_out=math.fsum(left_out) / len(left_out),
            scheduler_utilization=max(scheduler_busy_s) / self._duration_s,
            seconds=self._seconds(),
        )

    def _count(self, what: str, when_s: float, amount: float) -> None:
        if when_s < self._duration_s:
            self._by_second[what][int(when_s)] += amount

    def _seconds(self) -> tuple[Second, ...]:
        by = self._by_second
        return tuple(
            Second(int(arrivals), int(refused), busy_s / len(self._busy_s), ratio(hits, hits + misses), out)
            for arrivals, refused, busy_s, hits, misses, out in zip(
                by["arrivals"],
                by["refused"],
                by["busy_s"],
                by["hits"],
                by["misses"],
                by["left_out"],
                strict=True,
            )
        )
