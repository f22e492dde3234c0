"""The calls that come: when, of which DAG, how long their functions run, and what they read.

All of it is drawn before any policy has a say, from generators of its own: two policies with the same
seed see the same calls.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_sched.errors import ConfigError
from ray_sched.sim.scenario import Scenario
from ray_sched.sim.service import DISTRIBUTIONS, ZipfKeys

COLUMNS = ("time_s", "dag", "keys", "service_ms")


@dataclass(frozen=True)
class Arrival:
    """A call as it comes."""

    time_s: float
    dag: int
    keys: tuple[str, ...]
    """What its first function reads."""
    service_s: tuple[float, ...]
    """How long each of its functions runs, seconds, without misses."""


@dataclass(frozen=True)
class TraceRow:
    """A line of a trace; None where the trace leaves it open."""

    time_s: float
    dag: int | None = None
    keys: tuple[str, ...] | None = None
    service_s: float | None = None
    """Of each function."""


def arrivals(scenario: Scenario) -> Iterator[Arrival]:
    """The calls in order. Raises ConfigError where the trace is wrong, before the first one."""
    if scenario.trace:
        rows: Iterable[TraceRow] = read_trace(scenario.trace, scenario.dags)
    else:
        rows = map(TraceRow, times(scenario, random.Random(f"{scenario.seed}/times")))
    return _filled_in(rows, scenario)


def _filled_in(rows: Iterable[TraceRow], scenario: Scenario) -> Iterator[Arrival]:
    choice, service, reading = (
        random.Random(f"{scenario.seed}/{what}") for what in ("dags", "service", "keys")
    )
    draw = DISTRIBUTIONS[scenario.service]
    popular = ZipfKeys(scenario.keys, scenario.skew)
    steps = 1 if scenario.call == "one-shot" else scenario.functions
    mean_s = scenario.service_ms / 1e3
    for row in rows:
        if row.time_s >= scenario.duration_s:
            return
        yield Arrival(
            row.time_s,
            int(choice.random() * scenario.dags) if row.dag is None else row.dag,
            popular.draw(scenario.references, reading) if row.keys is None else row.keys,
            tuple(
                draw(mean_s, scenario.service_cv, service) if row.service_s is None else row.service_s
                for _ in range(steps)
            ),
        )


def times(scenario: Scenario, rng: random.Random) -> Iterator[float]:
    """When calls arrive (seconds), without end."""
    rate = scenario.rate
    if scenario.arrivals == "constant":
        number = 0
        while True:
            number += 1
            yield number / rate
    expected = 0.0
    while True:
        # A Poisson process of any rate is one of rate 1 in units of expected calls.
        expected += rng.expovariate(1.0)
        yield expected / rate if scenario.arrivals == "poisson" else _in_bursts(expected / rate, scenario)


def _in_bursts(mean_time_s: float, scenario: Scenario) -> float:
    """When as many calls are expected as at the mean rate by that time; each period begins with its burst."""
    period_s, length_s, factor = scenario.burst_period_s, scenario.burst_length_s, scenario.burst_factor
    periods, within_s = divmod(mean_time_s, period_s)
    in_burst_s = factor * length_s
    if within_s < in_burst_s:
        return periods * period_s + within_s / factor
    calm_s = period_s - length_s
    return periods * period_s + length_s + (within_s - in_burst_s) * calm_s / (period_s - in_burst_s)


def read_trace(path: str, dags: int) -> list[TraceRow]:
    """The calls of a CSV file with a header; `dag` counts from 0, `keys` are separated by spaces.

    Raises ConfigError, naming file, line and column.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            _check_header(path, names)
            rows: list[TraceRow] = []
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                row = _row(where, cells, dags)
                if rows and row.time_s < rows[-1].time_s:
                    last = rows[-1].time_s
                    raise ConfigError(f"{where}: time_s = {row.time_s:g} is before the last call's, {last:g}")
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read as a CSV file: {words}") from None
    if not rows:
        raise ConfigError(f"{path}: holds no calls: give a line for each, below the header")
    return rows


def _check_header(path: str, names: list[str]) -> None:
    if "time_s" not in names:
        raise ConfigError(f"{path}: its first line must name the columns, time_s among them")
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or len(set(names)) < len(names):
        shown = ", ".join(map(repr, unknown)) or "a repeated name"
        raise ConfigError(f"{path}: {shown} is no column of a trace; there are: {', '.join(COLUMNS)}")


def _row(where: str, cells: dict[str | None, str | None], dags: int) -> TraceRow:
    if None in cells or None in cells.values():
        raise ConfigError(f"{where}: has not as many cells as the header")
    given = {str(name): str(cell).strip() for name, cell in cells.items()}
    dag = service_s = None
    if text := given.get("dag"):
        if not text.isascii() or not text.isdecimal() or int(text) >= dags:
            raise ConfigError(f"{where}: dag = {text!r} is not allowed; it must be below --dags, {dags}")
        dag = int(text)
    if text := given.get("service_ms"):
        service_s = _number(where, "service_ms", text) / 1e3
    keys = tuple(dict.fromkeys(given["keys"].split())) if "keys" in given else None
    return TraceRow(_number(where, "time_s", given["time_s"]), dag, keys, service_s)


def _number(where: str, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{where}: {column} = {text!r} is not allowed; it must be a number of at least 0")
    return number
