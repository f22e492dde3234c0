"""The metrics: the one list of them, which actors publish and the Grafana dashboard is made of.

Each is published through Ray (`ray.util.metrics`) as `ray_sched_<name>`, and so appears at a node's
Prometheus endpoint as `ray_ray_sched_<name>`, counters and histograms with `_total` behind. All have the
label `group`.

A histogram is published as what Prometheus makes of one: a counter for each bound, of what was at most
that, with the bound as the label `le`; `histogram_quantile` takes it as it is. Ray's own takes one call of
3 to 9 µs for each observation, which is too much for each call of the hot path.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

PREFIX: Final = "ray_sched_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

REFUSED: Final = "refused_"
"""What an actor counts refusals under, with their kind behind it."""

STAGE_BOUNDS_S: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    name: str
    """Without the prefix; its unit is at its end, where it has one."""
    kind: str
    unit: str
    """As Grafana names units: `short`, `s`."""
    owner: str
    """The actor that publishes it."""
    help: str
    labels: tuple[str, ...] = ()
    """Beside `group`. All of their values come from this code, never from a client."""

    @property
    def prometheus_name(self) -> str:
        """As it appears at a node's endpoint."""
        return f"ray_{PREFIX}{self.name}" + ("" if self.kind == GAUGE else "_total")


METRICS: Final = (
    Metric(
        "calls",
        COUNTER,
        "short",
        "ingress, scheduler",
        "Calls to decide, where they are decided: by the ingress, without a valid lease by the Scheduler; "
        "`python`: through its handle.",
        ("kind",),
    ),
    Metric("forwarded", COUNTER, "short", "ingress", "Requests that went on to the Scheduler."),
    Metric(
        "errors",
        COUNTER,
        "short",
        "ingress, scheduler",
        "Requests refused, by the wire protocol's error; calls refused because too many came (`overload`); "
        "faults of the scheduler's own (`failed`); messages that led to nothing (`dropped`).",
        ("kind",),
    ),
    Metric(
        "stage_seconds",
        HISTOGRAM,
        "s",
        "ingress, scheduler",
        "Time of a stage: `turn`, for each call that the ingress decides, from its wake-up to the last reply "
        "to what had come; `forwarded`, from a request to the Scheduler's answer; `pin`, of pinning a DAG; "
        "`create`, of its whole creation.",
        ("stage", "le"),
    ),
    Metric("table_age_seconds", GAUGE, "s", "ingress", "Age of the ingress's dispatch table."),
    Metric("waiting_requests", GAUGE, "short", "ingress", "Requests that wait for the Scheduler."),
    Metric("functions", GAUGE, "short", "scheduler", "Functions that are registered."),
    Metric("dags", GAUGE, "short", "scheduler", "DAGs that exist."),
    Metric("pins", GAUGE, "short", "policy", "Functions pinned for DAGs."),
    Metric("missing_pins", GAUGE, "short", "policy", "Pins that a DAG lacks at the moment."),
    Metric(
        "executors",
        GAUGE,
        "short",
        "policy",
        "Executors: `free`, `holding` functions, or `overloaded`.",
        ("state", "type"),
    ),
    Metric("peers", GAUGE, "short", "gossip", "Other schedulers, of this Ray cluster and foreign ones."),
    Metric("gossip_age_seconds", GAUGE, "s", "gossip", "Since a peer last told something; none before that."),
    Metric(
        "gossip_updates", COUNTER, "short", "gossip", "Updates: `taken`, `sent`, `unsent`.", ("direction",)
    ),
)
BY_NAME: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}


class Sample(NamedTuple):
    """The value of a metric now; of a counter, all that was counted since the start."""

    name: str
    value: float
    labels: tuple[str, ...] = ()
    """In the order of the metric's own."""


def refusals(counts: Mapping[str, int]) -> Iterator[Sample]:
    """Those among an actor's counts, by their kind."""
    for key, number in counts.items():
        if key.startswith(REFUSED):
            yield Sample("errors", number, (key.removeprefix(REFUSED),))


class Histogram:
    """Counts how long a stage took; one observation costs a search among a dozen bounds."""

    def __init__(self, stage: str, bounds: tuple[float, ...] = STAGE_BOUNDS_S) -> None:
        self._stage = stage
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float, times: int = 1) -> None:
        """`times`: how many there were that all took that long."""
        self._counts[bisect.bisect_left(self._bounds, seconds)] += times

    def samples(self) -> Iterator[Sample]:
        """One for each bound, of what took at most that, and one of all (`+Inf`)."""
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for bound, total in zip(bounds, accumulate(self._counts), strict=True):
            yield Sample("stage_seconds", total, (self._stage, bound))
