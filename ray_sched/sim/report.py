"""What a simulation came to, as a table and as a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ray_sched.errors import ConfigError
from ray_sched.sim.outcome import Outcome
from ray_sched.sim.scenario import Scenario


@dataclass(frozen=True)
class Run:
    """One policy in one case."""

    policy: str
    value: str
    """Of what is varied; empty where nothing is."""
    outcome: Outcome


FIGURES: Final[dict[str, Callable[[Outcome], float]]] = {
    "arrivals": lambda o: o.arrivals,
    "completed": lambda o: o.completed,
    "refused": lambda o: o.refused,
    "in_flight_at_end": lambda o: o.all_in_flight,
    "mean_ms": lambda o: o.mean_s * 1e3,
    "p50_ms": lambda o: o.quantile_s(0.5) * 1e3,
    "p90_ms": lambda o: o.quantile_s(0.9) * 1e3,
    "p99_ms": lambda o: o.quantile_s(0.99) * 1e3,
    "utilization": lambda o: o.utilization,
    "utilization_least": lambda o: o.utilization_least,
    "utilization_most": lambda o: o.utilization_most,
    "hit_rate": lambda o: o.hit_rate,
    "left_out": lambda o: o.left_out,
    "scheduler_utilization": lambda o: o.scheduler_utilization,
}
"""The columns of the CSV file."""

_ROW: Final = "{:>9}{:>10}{:>10}{:>10}{:>13}{:>11}{:>10}{:>10}"


def heading(scenarios: Sequence[Scenario]) -> str:
    """What is simulated, in a sentence; of what is varied, from the least to the most."""
    first = scenarios[0]
    groups = _span([s.schedulers for s in scenarios])
    load = f"the calls of {first.trace}" if first.trace else f"{_span([s.rate for s in scenarios])} calls/s"
    return (
        f"{_span([s.executors for s in scenarios])} executors on "
        f"{_span([s.nodes for s in scenarios])} nodes, "
        f"{groups} scheduler group{'' if groups == '1' else 's'}, {load}, "
        f"{_span([s.duration_s for s in scenarios])} s of which the first "
        f"{_span([s.warm_up_s for s in scenarios])} s do not count; seed {_span([s.seed for s in scenarios])}"
    )


def _span(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}"


def header(varied: str, width: int) -> str:
    titles = ("calls", "refused", "p50 ms", "p99 ms", "utilization", "left out", "hit rate", "scheduler")
    return f"{'policy':<{width}}{_varied(varied, varied)}" + _ROW.format(*titles)


def line(run: Run, varied: str, width: int) -> str:
    """A row of the table."""
    o = run.outcome
    cells = (
        o.arrivals,
        _percent(o.refused_share),
        _ms(o.quantile_s(0.5)),
        _ms(o.quantile_s(0.99)),
        _percent(o.utilization),
        _percent(o.left_out),
        _percent(o.hit_rate),
        _percent(o.scheduler_utilization),
    )
    return f"{run.policy:<{width}}{_varied(varied, run.value)}" + _ROW.format(*cells)


def _varied(varied: str, text: str) -> str:
    return f"  {text:>{max(8, len(varied))}}" if varied else ""


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.1f} %"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1e3:.1f}"


def write_csv(path: str, runs: Sequence[Run], varied: str) -> None:
    """One line for each run; the same runs give the same bytes. Raises ConfigError."""
    try:
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["policy", *([varied] if varied else []), *FIGURES])
            for run in runs:
                figures = [_figure(of(run.outcome)) for of in FIGURES.values()]
                writer.writerow([run.policy, *([run.value] if varied else []), *figures])
    except OSError as error:
        raise ConfigError(f"--csv: {path} cannot be written: {error.strerror}") from None


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
